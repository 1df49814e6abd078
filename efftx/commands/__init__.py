"""The commands of efftx, one module each; the table names them, and a module is imported when its command is given."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command's line in `efftx --help`, and its module.

    The module offers `EPILOG` (what stands below its options in `--help`), `run(arguments, words)` and, where it has
    them, `ROOTS` (the folders that it uses without being told) and `add_options(parser)`. It imports what it works with
    inside `run`. `composes`: it reads overrides of a configuration, from folders of the user's own too.
    """

    name: str
    about: str
    composes: bool = False

    def load(self) -> Any:
        """The command's module."""
        return importlib.import_module(f"efftx.commands.{self.name}")


COMMANDS = {
    command.name: command
    for command in (
        Command("train", "Train, evaluate, write the run directory; again: resume.", composes=True),
        Command("ablate", "Run the product of key=a,b overrides; skip what is done.", composes=True),
        Command("reproduce", "Run what a table, figure or paper lacks; print it."),
        Command("report", "Print a table or figure, or write the whole report."),
        Command("bench", "Measure speed and memory against bounds and peers."),
        Command("plan", "Parameters, FLOPs, memory, hours; nothing is run.", composes=True),
        Command("sample", "Write text from the newest checkpoint of a run."),
        Command("data", "List, prepare or verify the data sets.", composes=True),
        Command("power", "What seeds can see, and what more of them would cost."),
        Command("list", "Every table and figure, its state, and at which size."),
    )
}

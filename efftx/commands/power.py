"""`efftx power`."""

from __future__ import annotations

import argparse

from rich.console import Console

from efftx.commands.outcome import Outcome
from efftx.core.lines import say
from efftx.errors import UserError, nearest
from efftx.options import Options
from efftx.report.power import power_json, show_power
from efftx.study.experiment import SIZES
from efftx.study.experiments import load_experiments, select
from efftx.study.power import powers
from efftx.study.records import RecordStore


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """Says what seeds can see; nothing is run."""
    read = Options(words, ("size",))
    if not read.plain:
        raise UserError(
            "bad_command", "Say which item.", "For instance reformer/table2, reformer, or all; see `efftx list`."
        )

    size = read.given.get("size")
    if size is not None and size not in SIZES:
        raise UserError("unknown_size", f"there is no size '{size}'", nearest(size, SIZES))
    chosen = select(load_experiments(), read.plain)

    store = RecordStore()
    for error in store.damaged(experiment.id for experiment in chosen):
        say(f"Left out: {error.message} {error.hint}")
    sizes = [size or experiment.usual_size() for experiment in chosen]
    items = [(e, at) for e, at in zip(chosen, sizes, strict=True) if at in e.sizes_known()]
    powers_of_items = [(e, at, powers(e, store.read_all(e.id), at)) for e, at in items]
    if not powers_of_items:
        asked = f"size {size}" if size else "size cpu or paper"
        defined = [known for known in SIZES if any(known in experiment.sizes_known() for experiment in chosen)]
        hint = f"It is at {' and '.join(defined)}: give size={defined[0]}."
        raise UserError("unknown_size", f"Nothing of this is defined at {asked}.", hint)
    answers = [power_json(*item) for item in powers_of_items]

    def show(console: Console) -> None:
        for i, item in enumerate(powers_of_items):
            if i:
                console.print()
            show_power(*item, console)

    return Outcome(answers[0] if len(answers) == 1 else {"items": answers}, show)

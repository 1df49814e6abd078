"""`efftx compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from efftx.commands.outcome import Outcome
from efftx.core.files import place_of, write_atomically, writing
from efftx.core.lines import say
from efftx.errors import UserError
from efftx.options import Options
from efftx.report.compared import compare, drawn, show


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """Sets two runs side by side; nothing is run."""
    read = Options(words, ("out",), paths=True)
    if len(read.plain) != 2:
        hint = "`efftx compare runs/<one> runs/<other>`; the folders are what `efftx train` printed."
        raise UserError("bad_command", f"Two runs are compared, not {len(read.plain)}.", hint)
    page = place_of("out", read.given["out"]) if "out" in read.given else None
    compared = compare(Path(read.plain[0]), Path(read.plain[1]))
    answer = compared.to_json()
    if page is not None:
        figure = drawn(compared)
        with writing(page, "set out= to another place"):
            write_atomically(page, figure.encode())
        say(f"The curves are in {page}.")
        answer["figure"] = str(page)
    return Outcome(answer, lambda console: show(compared, console))

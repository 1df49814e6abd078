"""`efftx export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from efftx.commands.import_weights import KINDS
from efftx.commands.outcome import Outcome
from efftx.errors import UserError, nearest


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """Writes the last weights of a run under the names of the authors' code or of transformers."""
    if len(words) != 3 or words[0] not in KINDS:
        hint = "`efftx export trax RUN FILE.npz`, `efftx export hf RUN FOLDER`."
        if words and words[0] not in KINDS:
            hint = f"{nearest(words[0], KINDS)} {hint}"
        raise UserError("bad_command", "Say in whose form, of which run, and where to.", hint)
    kind, run_dir, place = words[0], Path(words[1]), Path(words[2])

    from efftx.runs.exported import export_authors, export_transformers  # imports torch

    names = (export_authors if kind == "trax" else export_transformers)(run_dir, place)
    written = {"run": str(run_dir), "written": str(place), "arrays": names}
    return Outcome(written, lambda console: console.print(f"{len(names)} arrays are in {place}.", highlight=False))

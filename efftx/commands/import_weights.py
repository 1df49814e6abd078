"""`efftx import`."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from efftx.commands.outcome import Outcome
from efftx.config.compose import compose, parse_overrides
from efftx.core.lines import say
from efftx.errors import UserError, nearest
from efftx.terminal import show_training

KINDS = ("trax", "hf")
_FIRST = "first_token="


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """Makes a run of weights from elsewhere, and evaluates it as a training evaluates its last weights."""
    if len(words) < 2 or words[0] not in KINDS:
        wrong = f"'{words[0]}' is no kind of weights. " if words and words[0] not in KINDS else ""
        forms = "`efftx import trax FILE.npz data=...`, `efftx import hf FOLDER data=...`."
        hint = nearest(words[0], KINDS) if wrong else forms
        raise UserError("bad_command", f"{wrong}Say what is to be imported, and its file or folder.", hint)
    kind, place, *rest = words
    first_token = _first_token(rest, kind)
    overrides = [word for word in rest if not word.startswith(_FIRST)]
    keys = {override.key_or_group for override in parse_overrides(overrides)}

    from efftx.runs.imported import read_authors, read_transformers  # both import torch: cheap refusals come first
    from efftx.training.loop import train

    imported = read_authors(Path(place)) if kind == "trax" else read_transformers(Path(place), first_token)
    derived = [word for word in imported.overrides if word.partition("=")[0] not in keys]
    say(f"Read off the weights: {' '.join(derived)}")
    config = compose(overrides, config_dirs=arguments.config_dir, derived=derived)
    result = train(replace(config, imported=imported.sha256), weights=imported.weights)
    return Outcome({**asdict(result), "run": str(result.run)}, lambda console: show_training(result, console))


def _first_token(words: list[str], kind: str) -> int:
    values = [word.removeprefix(_FIRST) for word in words if word.startswith(_FIRST)]
    if not values:
        return 0
    if kind != "hf" or not values[-1].isdecimal():
        message = f"{_FIRST}{values[-1]} is a whole number, and of `efftx import hf` alone."
        raise UserError("bad_value", message, "google/reformer-enwik8 wants first_token=2.")
    return int(values[-1])

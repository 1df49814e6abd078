"""`efftx data`."""

from __future__ import annotations

import argparse

from efftx.commands.outcome import Outcome
from efftx.config.compose import compose
from efftx.core.lines import say
from efftx.data import catalogue
from efftx.data.dataset import DataConfig, find_source, names
from efftx.errors import UserError, nearest
from efftx.options import Options
from efftx.terminal import show_data

ACTIONS = ("list", "prepare", "verify")
_SETTINGS = ("data.", "size=")
"""How the words begin that say which form of a data set is meant."""


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """Lists, prepares or verifies; exit code 1 where verified bytes are damaged."""
    plain = Options([w for w in words if not w.startswith(_SETTINGS)], ()).plain
    settings = [w for w in words if w.startswith(_SETTINGS)]
    if not plain or plain[0] not in ACTIONS:
        raise UserError("bad_command", "Say list, prepare NAME or verify [NAME].", nearest("".join(plain[:1]), ACTIONS))

    action, chosen = plain[0], plain[1:]
    for name in chosen:
        find_source(name)
    if action == "prepare":
        if not chosen:
            raise UserError("bad_command", "Say which data set to prepare.", f"Known: {', '.join(names())}.")
        rows = []
        for name in chosen:
            rows.append(catalogue.prepare(_configured(name, settings, arguments.config_dir)))
        for note in (note for row in rows for note in row["notes"]):
            say(note)
    elif settings:
        message = f"{settings[0]} is read by `efftx data prepare` alone."
        raise UserError("unknown_key", message, f"{action} reads what was prepared: give the data set's name, or none.")
    else:
        look = catalogue.listed if action == "list" else catalogue.verify
        rows = [row for name in chosen or names() for row in look(name)]
        if not chosen:
            rows += catalogue.vocabularies(hashes=action == "verify")
    damaged = action == "verify" and any(row["state"] == "damaged" for row in rows)
    return Outcome({"data": rows}, lambda console: show_data(rows, console), 1 if damaged else 0)


def _configured(name: str, settings: list[str], config_dirs: list[str]) -> DataConfig:
    """The data node; what a data set is does not depend on a model, and a language model has least to ask of it."""
    words = [f"data={name}", *settings]
    if "lm" in find_source(name).objectives:
        try:
            return compose([*words, "stack=decoder"], config_dirs=config_dirs).data
        except UserError as error:
            if error.kind != "dead_key":  # a key of span corruption, which a language model has not
                raise
    return compose(words, config_dirs=config_dirs).data

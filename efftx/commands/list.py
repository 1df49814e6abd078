"""`efftx list`."""

from __future__ import annotations

import argparse

from efftx.commands.outcome import Outcome
from efftx.core.lines import say
from efftx.options import Options
from efftx.study.composer import Composer
from efftx.study.experiments import load_experiments, select
from efftx.study.records import RecordStore
from efftx.study.status import not_readable, state_of
from efftx.terminal import show_list


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """Lists items with their states."""
    items = Options(words, ()).plain
    experiments = load_experiments()
    chosen = select(experiments, items) if items else list(experiments.values())
    store, composer = RecordStore(), Composer()
    states = [state_of(experiment, store, composer) for experiment in chosen]
    for error in store.damaged(experiment.id for experiment in chosen):
        say(f"Left out: {error.message} {error.hint}")
    states += [not_readable(file) for file in experiments.unreadable if file.is_meant(items)]
    return Outcome({"items": states}, lambda console: show_list(states, console))

"""`efftx train`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from efftx.commands.outcome import Outcome
from efftx.commands.roots import DATA, RUNS
from efftx.commands.words import OVERRIDES, refuse_ranks

EPILOG = OVERRIDES
ROOTS = (RUNS, DATA)


def run(arguments: argparse.Namespace, overrides: list[str]) -> Outcome:
    """Trains, or shows the result of a run that is done."""
    from efftx.config.compose import compose

    refuse_ranks("train")
    config = compose(overrides, config_dirs=arguments.config_dir)

    from efftx.runs.pretrained import resolved
    from efftx.terminal import show_training
    from efftx.training.loop import train

    result = train(resolved(config))
    return Outcome({**asdict(result), "run": str(result.run)}, lambda console: show_training(result, console))

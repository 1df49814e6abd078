"""`efftx train`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from efftx.commands.outcome import Outcome
from efftx.commands.words import refuse_ranks
from efftx.config.compose import compose
from efftx.terminal import show_training


def run(arguments: argparse.Namespace, overrides: list[str]) -> Outcome:
    """Trains, or shows the result of a run that is done."""
    refuse_ranks("train")
    config = compose(overrides, config_dirs=arguments.config_dir)

    from efftx.runs.pretrained import resolved  # both import torch: what is wrong above is told at once
    from efftx.training.loop import train

    result = train(resolved(config))
    return Outcome({**asdict(result), "run": str(result.run)}, lambda console: show_training(result, console))

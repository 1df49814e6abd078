"""`efftx train`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from efftx.commands.outcome import Outcome
from efftx.config.compose import compose, parse_overrides
from efftx.config.schema import Config
from efftx.core.lines import say
from efftx.core.ranks import n_processes
from efftx.layers.settings import off_the_grid
from efftx.terminal import show_training


def run(arguments: argparse.Namespace, overrides: list[str]) -> Outcome:
    """Trains, or shows the result of a run that is done; under `torchrun` as one of the processes of one training."""
    config = compose(overrides, config_dirs=arguments.config_dir) if n_processes() == 1 else None

    from efftx.distributed.processes import joined  # these import torch: what is wrong above is told at once
    from efftx.runs.pretrained import resolved
    from efftx.training.loop import train

    with joined() as processes:
        with processes.together():
            config = resolved(config or compose(overrides, config_dirs=arguments.config_dir))
        if processes.leads and (note := _off_the_grid(overrides, config)):
            say(note)
        result = train(config, processes=processes)
    mirrors = config.tracker.wandb or config.tracker.tensorboard
    if processes.leads and result.resumed_from == result.step and mirrors:
        say("The run was done before: nothing is mirrored. With run_dir=<a new folder> it is trained anew, and is.")
    answer = {**asdict(result), "run": str(result.run)}
    return Outcome(answer, lambda console: show_training(result, console), shown=processes.leads)


def _off_the_grid(overrides: list[str], config: Config) -> str | None:
    """What to tell of a grid that the user gave, and not a preset, which is for texts as well as for pictures."""
    if not any(str(o.key_or_group) in ("positions", "positions.axial_shape") for o in parse_overrides(overrides)):
        return None
    return off_the_grid(config.positions, getattr(config.data, "side", None))

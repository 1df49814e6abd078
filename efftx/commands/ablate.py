"""`efftx ablate`."""

from __future__ import annotations

import argparse

from efftx.commands.outcome import Outcome
from efftx.config.compose import parse_overrides, refuse_unknown_keys, split_hydra, swept_keys
from efftx.core.lines import say
from efftx.errors import UserError
from efftx.terminal import show_ablation


def run(arguments: argparse.Namespace, overrides: list[str]) -> Outcome:
    """Runs every point; exit code 1 where one failed."""
    if not overrides:
        raise UserError("bad_override", "efftx ablate wants a key and its values.", "Such as sparse_ff.N=64,128.")
    refuse_unknown_keys(parse_overrides(overrides), arguments.config_dir)

    from efftx.ablate import ablate  # imports torch: what is wrong above is told at once

    runs = ablate(overrides, config_dirs=arguments.config_dir, say=say)
    keys = swept_keys(split_hydra(overrides)[0])
    failed = any(run["state"] == "failed" for run in runs)
    return Outcome({"runs": runs}, lambda console: show_ablation(runs, keys, console), 1 if failed else 0)

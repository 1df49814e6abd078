"""`efftx plan`."""

from __future__ import annotations

import argparse

from efftx.commands.outcome import Outcome
from efftx.commands.words import OVERRIDES

EPILOG = OVERRIDES


def add_options(parser: argparse.ArgumentParser) -> None:
    """--on, --utilisation."""
    parser.add_argument("--on", default=None, metavar="DEVICE", help="the device to count hours on")
    parser.add_argument("--utilisation", type=float, default=None, help="the share of its peak that is reached")


def run(arguments: argparse.Namespace, overrides: list[str]) -> Outcome:
    """What a configuration costs, at size=paper if none is given. No data is read, but a data.path must exist."""
    from efftx.config.compose import compose, parse_overrides

    sized = any(override.key_or_group in ("size", "preset") for override in parse_overrides(overrides))
    config = compose(overrides if sized else ["size=paper", *overrides], config_dirs=arguments.config_dir)

    from efftx.data.samples import check_path
    from efftx.plan import plan
    from efftx.plan.table import print_plan
    from efftx.runs.pretrained import resolved

    check_path(config.data)
    options = {"device": arguments.on, "utilisation": arguments.utilisation}
    result = plan(resolved(config), **{key: value for key, value in options.items() if value is not None})
    return Outcome(result, lambda console: print_plan(result, console))

"""`efftx plan`."""

from __future__ import annotations

import argparse

from efftx.commands.outcome import Outcome
from efftx.config.compose import compose, parse_overrides
from efftx.config.values import Range
from efftx.data.samples import check_path
from efftx.errors import UserError
from efftx.options import whole
from efftx.study.experiment import SIZES

_DEVICES = "devices="
MOST_DEVICES = Range(1, 65_536)


def read_words(words: list[str]) -> tuple[list[str], int]:
    """The overrides, at size=paper where they name no size and no preset of a size, and the number of devices."""
    overrides = [word for word in words if not word.startswith(_DEVICES)]
    counts = [word.removeprefix(_DEVICES) for word in words if word.startswith(_DEVICES)]
    if len(counts) > 1:
        raise UserError("bad_override", "'devices' is given twice.", "Give it once.")
    devices = whole("devices", counts[-1], MOST_DEVICES, "For instance devices=64.") if counts else 1
    sized = any(_names_a_size(o.key_or_group, str(o.value())) for o in parse_overrides(overrides))
    return (overrides if sized else ["size=paper", *overrides]), devices


def _names_a_size(key: str, value: str) -> bool:
    return key == "size" or (key == "preset" and value.rpartition("/")[2] in SIZES)


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """What a configuration costs, at size=paper if none is given. No data is read, but a data.path must exist."""
    overrides, devices = read_words(words)
    config = compose(overrides, config_dirs=arguments.config_dir)
    check_path(config.data)
    from efftx.plan import plan  # imports torch: what is wrong above is told at once
    from efftx.plan.table import print_plan

    options = {"device": arguments.on, "utilisation": arguments.utilisation}
    result = plan(config, devices=devices, **{key: value for key, value in options.items() if value is not None})
    return Outcome(result, lambda console: print_plan(result, console))

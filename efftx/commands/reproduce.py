"""`efftx reproduce`."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace

from rich.console import Console

from efftx.commands.outcome import Outcome
from efftx.config.settings import TrackerConfig
from efftx.config.values import Range
from efftx.core.lines import say
from efftx.errors import UserError
from efftx.options import SEED, Options, decimal, whole, wholes
from efftx.report.show import print_item
from efftx.reproduce.asked import Asked
from efftx.study.composer import Composer
from efftx.study.experiments import load_experiments, narrow, select
from efftx.study.status import FRESH, NOT_AT_HAND, NOT_REPLAYABLE, STALE
from efftx.terminal import show_reproduced

REAL = Range(-1e300, 1e300)


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """Runs what the items lack; exit code 1 where a row failed, or a replay no longer gives its record."""
    trackers = [f"tracker.{field.name}" for field in fields(TrackerConfig)]
    read = Options(words, ("size", "seeds", "jobs", "swept", *trackers))
    items, options = read.plain, read.given
    if not items:
        raise UserError(
            "bad_command", "Say which item.", "For instance reformer/table2, reformer, or all; see `efftx list`."
        )
    asked = Asked(
        options.get("size", ""),
        jobs=whole("jobs", options.get("jobs", "1"), Range(1, 1024), "jobs=2 trains two rows at a time."),
        part=_part(arguments.part, verify=arguments.verify),
        seeds=wholes("seeds", options["seeds"], SEED, "For instance seeds=0,1,2.") if "seeds" in options else None,
        swept=decimal("swept", options["swept"], REAL, "For instance swept=0.003.") if "swept" in options else None,
        tracker=[f"{key}={options[key]}" for key in trackers if key in options],
        stale=arguments.stale,
        verify=arguments.verify,
        yes=arguments.yes,
    )

    every = load_experiments()
    experiments = select(every, items)
    unreadable = [file for file in every.unreadable if file.is_meant(items)]
    for file in unreadable:
        say(f"Left out: {file.error.message} {file.error.hint}")
    chosen = narrow(experiments, arguments.row) if arguments.row else experiments

    from efftx.reproduce.runner import reproduce  # imports torch, which no misspelt item waits for

    # What exists at the paper's own size alone, a token's time at its true width, is meant where no size is given.
    by_size = {size: [e for e in chosen if e.usual_size() == size] for size in ("cpu", "paper")}
    groups = {options["size"]: chosen} if "size" in options else by_size
    lines = [
        line for size, group in groups.items() if group for line in reproduce(group, replace(asked, size=size), say=say)
    ]

    counted = (FRESH, STALE, NOT_REPLAYABLE, NOT_AT_HAND, "failed")
    if asked.verify and not asked.stale and not any(line[word] for line in lines for word in counted):
        where = f" at size {asked.size}" if asked.size else ""
        part = f" in --part {arguments.part}" if arguments.part else ""
        hint = "`efftx list` says what is recorded, and at which sizes; without --verify what is lacking is run."
        raise UserError("not_recorded", f"There is nothing to verify: none of this has a record{where}{part}.", hint)

    def show(console: Console) -> None:
        composer = Composer()
        for experiment in chosen if not arguments.verify else ():
            size = options.get("size", experiment.usual_size())
            if size in experiment.sizes_known():
                print_item(experiment, console=console, size=size, composer=composer)
        show_reproduced(lines, console)

    failed = any(line["failed"] or (line.get("stale") and not arguments.stale) for line in lines)
    return Outcome({"items": lines}, show, 1 if failed or unreadable else 0)


def _part(given: str | None, *, verify: bool) -> tuple[int, int]:
    """(k, n) of --part k/n, all records without it; UserError for another form, and where nothing is verified."""
    if given is None:
        return 1, 1
    hint = "For instance --verify --part 3/10: a tenth of the records."
    if not verify:
        raise UserError("bad_command", "--part chooses among the records that --verify replays.", hint)
    first, _, every = given.partition("/")
    n = whole("--part", every, Range(1, 1_000_000), hint)
    return whole("--part", first, Range(1, n), hint), n

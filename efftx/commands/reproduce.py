"""`efftx reproduce`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from efftx.commands.outcome import Outcome, say
from efftx.commands.roots import DATA, RESULTS, RUNS
from efftx.commands.words import refuse_ranks
from efftx.config.settings import TrackerConfig
from efftx.config.values import Range
from efftx.errors import UserError
from efftx.options import SEED, Options, decimal, whole, wholes

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = """efftx reproduce ITEM... [size=cpu] [seeds=0,1,2] [jobs=1]
ITEM is a table or figure (reformer/table2), a paper (reformer), or all;
`efftx list` names them. Behind it stand key=value words:
  size=      cpu, gpu, paper or smoke; without it cpu, or paper where there is
             no other
  seeds=     such as 0,1,2, in place of the item's own
  jobs=      so many trainings side by side
  swept=     only the runs of the item's sweep at this value
  tracker.wandb=true, and tracker.project=, entity=, group=, tags=
             mirrors every training; the group is the item where none is given"""
ROOTS = (RUNS, RESULTS, DATA)
REAL = Range(-1e300, 1e300)


def add_options(parser: argparse.ArgumentParser) -> None:
    """--stale, --verify, --part, --row, --yes."""
    parser.add_argument("--stale", action="store_true", help="also run again what no longer comes out")
    parser.add_argument("--verify", action="store_true", help="replay the first steps of every record")
    parser.add_argument("--part", metavar="K/N", help="with --verify: every N-th record, from the K-th on")
    parser.add_argument("--row", action="append", default=[], metavar="ROW", help="only this row; may be repeated")
    parser.add_argument("--yes", action="store_true", help="run even if it is priced above 24 hours")


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """Runs what the items lack; exit code 1 where a row failed, or a replay no longer gives its record."""
    refuse_ranks("reproduce")
    trackers = [f"tracker.{field.name}" for field in fields(TrackerConfig)]
    read = Options(words, ("size", "seeds", "jobs", "swept", *trackers))
    items, options = read.plain, read.given
    if not items:
        raise UserError(
            "bad_command", "Say which item.", "For instance reformer/table2, reformer, or all; see `efftx list`."
        )
    jobs = whole("jobs", options.get("jobs", "1"), Range(1, 1024), "jobs=2 trains two rows at a time.")
    part = _part(arguments.part, verify=arguments.verify)
    seeds = wholes("seeds", options["seeds"], SEED, "For instance seeds=0,1,2.") if "seeds" in options else None

    swept = decimal("swept", options["swept"], REAL, "For instance swept=0.003.") if "swept" in options else None

    from efftx.study.experiment import load_experiments, narrow, select

    every = load_experiments()
    experiments = select(every, items)
    unreadable = [file for file in every.unreadable if file.is_meant(items)]
    for file in unreadable:
        say(f"Left out: {file.error.message} {file.error.hint}")
    chosen = narrow(experiments, arguments.row) if arguments.row else experiments

    from efftx.reproduce.runner import reproduce
    from efftx.terminal import show_reproduced

    # What exists at the paper's own size alone, a token's time at its true width, is meant where no size is given.
    by_size = {size: [e for e in chosen if e.usual_size() == size] for size in ("cpu", "paper")}
    lines = [
        line
        for size, group in ({options["size"]: chosen} if "size" in options else by_size).items()
        if group
        for line in reproduce(
            group,
            size,
            seeds,
            stale=arguments.stale,
            verify=arguments.verify,
            part=part,
            yes=arguments.yes,
            jobs=jobs,
            swept=swept,
            tracker=[f"{key}={options[key]}" for key in trackers if key in options],
            say=say,
        )
    ]

    def show(console: Console) -> None:
        from efftx.report.show import print_item

        for experiment in experiments if not arguments.verify else ():
            print_item(experiment, console=console)
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

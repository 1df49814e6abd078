"""`efftx report`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from efftx.commands.outcome import Outcome
from efftx.core.counts import count
from efftx.core.files import write_atomically, writing
from efftx.core.lines import say
from efftx.errors import UserError
from efftx.options import Options
from efftx.report import against
from efftx.report.show import item_json, print_item
from efftx.study.experiment import Experiment
from efftx.study.experiments import Experiments, at_size, load_experiments, select
from efftx.study.papers import load_papers
from efftx.study.records import RecordStore

MOST_NAMED = 20
"""Files that `--check` names; --json names all."""


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """Prints items, writes the report, or compares it; exit code 1 where it differs or a damaged record is left out."""
    read = Options(words, ("size",))
    items, size = read.plain, read.given.get("size")
    experiments = load_experiments()
    chosen = select(experiments, items)
    errors: list[UserError] = [file.error for file in experiments.unreadable if file.is_meant(items)]
    errors += RecordStore().damaged(experiment.id for experiment in chosen or experiments.values())
    damaged = [error.message for error in errors]
    for error in errors:
        say(f"Left out: {error.message} {error.hint}")
    if size is not None and (arguments.against or not items):
        hint = "For instance `efftx report reformer/table2 size=cpu`."
        raise UserError("bad_command", "size= shows an item at one size.", hint)
    if arguments.html and not arguments.against:
        raise UserError("bad_command", "--html goes with --against.", "Without it `efftx report` writes its page.")
    if arguments.against:
        return _against(arguments, chosen or list(experiments.values()))
    if arguments.check and items:
        raise UserError("bad_command", "--check compares the whole report.", "Leave the item out.")
    if items:
        return _items(at_size(chosen, size), size or "", damaged)
    return _whole(experiments, damaged, only_check=arguments.check)


def _items(chosen: Sequence[Experiment], size: str, damaged: list[str]) -> Outcome:
    from efftx.study.composer import Composer  # imports Hydra, which no misspelt item waits for

    composer = Composer()
    items = [item_json(experiment, size=size, composer=composer) for experiment in chosen]

    def show(console: Console) -> None:
        for experiment in chosen:
            print_item(experiment, console=console, size=size, composer=composer)

    answer = items[0] if len(items) == 1 else {"items": items}
    return Outcome({**answer, "damaged": damaged}, show, 1 if damaged else 0)


def _whole(experiments: Experiments, damaged: list[str], *, only_check: bool) -> Outcome:
    from efftx.report.build import build_report, check_report  # draws with matplotlib

    page = RecordStore().root / "report" / "index.html"
    if not only_check:
        written = build_report(None, experiments.values(), papers=load_papers())
        return Outcome(
            {"files": [str(path) for path in written], "page": str(page), "damaged": damaged},
            lambda console: console.print(f"{count(len(written), 'file')}; the page is {page}", markup=False),
            1 if damaged else 0,
        )
    differences = [*damaged, *check_report(None, experiments.values(), papers=load_papers())]

    def show(console: Console) -> None:
        named, mend = differences[:MOST_NAMED], ["`efftx report` writes it from the records."]
        if not page.exists():
            named, mend = damaged, ["The report was never written: `efftx report` writes it."]
        elif more := len(differences) - len(named):
            mend = [f"... and {more} more", *mend]
        lines = [*named, *mend] if differences else ["The report is what the records give."]
        console.print("\n".join(lines), markup=False)

    return Outcome({"differences": differences}, show, 1 if differences else 0)


def _against(arguments: argparse.Namespace, experiments: Sequence[Experiment]) -> Outcome:
    """Two results folders side by side."""
    here, there = RecordStore(), Path(arguments.against)
    pairs = against.compare(here, there, experiments)
    answer = against.as_json(here, there, pairs)
    if arguments.html:
        page = Path(arguments.html)
        with writing(page, "give another path"):
            write_atomically(page, against.html(here, there, pairs).encode())
        answer["page"] = str(page)
    return Outcome(answer, lambda console: against.print_against(pairs, console))

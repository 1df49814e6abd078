"""`efftx report`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from efftx.commands.outcome import Outcome, say
from efftx.errors import UserError
from efftx.options import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from efftx.study.experiment import Experiment


def run(arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """Prints items, writes the report, or compares it; exit code 1 where it differs or a damaged record is left out."""
    from efftx.study.experiments import load_experiments, select
    from efftx.study.papers import load_papers

    items = Options(words, ()).plain
    experiments = load_experiments()
    chosen = select(experiments, items)

    from efftx.study.records import RecordStore

    errors: list[UserError] = [file.error for file in experiments.unreadable if file.is_meant(items)]
    errors += RecordStore().damaged(experiment.id for experiment in chosen or experiments.values())
    damaged = [error.message for error in errors]
    for error in errors:
        say(f"Left out: {error.message} {error.hint}")
    if arguments.html and not arguments.against:
        raise UserError("bad_command", "--html goes with --against.", "Without it `efftx report` writes its page.")
    if arguments.against:
        return _against(arguments, chosen or list(experiments.values()))
    if arguments.check:
        if items:
            raise UserError("bad_command", "--check compares the whole report.", "Leave the item out.")
        from efftx.report.build import check_report

        differences = [*damaged, *check_report(None, experiments.values(), papers=load_papers())]

        def show_differences(console: Console) -> None:
            if differences:
                written = (RecordStore().root / "report" / "index.html").exists()
                why = "Records or replays came since it was written" if written else "It was never written"
                differences.append(f"{why}: `efftx report` writes it.")
            console.print("\n".join(differences) or "The report is what the records give.", markup=False)

        return Outcome({"differences": differences}, show_differences, 1 if differences else 0)
    if items:
        from efftx.report.show import item_json, print_item

        found = [item_json(experiment) for experiment in chosen]

        def show_items(console: Console) -> None:
            for experiment in chosen:
                print_item(experiment, console=console)

        answer = found[0] if len(found) == 1 else {"items": found}
        return Outcome({**answer, "damaged": damaged}, show_items, 1 if damaged else 0)
    from efftx.report.build import build_report

    written = build_report(None, experiments.values(), papers=load_papers())
    page = RecordStore().root / "report" / "index.html"
    return Outcome(
        {"files": [str(path) for path in written], "page": str(page), "damaged": damaged},
        lambda console: console.print(f"{len(written)} files; the page is {page}", markup=False),
        1 if damaged else 0,
    )


def _against(arguments: argparse.Namespace, experiments: Sequence[Experiment]) -> Outcome:
    """Two results folders side by side."""
    from pathlib import Path

    from efftx.core.files import write_atomically, writing
    from efftx.report import against
    from efftx.study.records import RecordStore

    here, there = RecordStore(), Path(arguments.against)
    found = against.compare(here, there, experiments)
    answer = against.as_json(here, there, found)
    if arguments.html:
        page = Path(arguments.html)
        with writing(page, "give another path"):
            write_atomically(page, against.html(here, there, found).encode())
        answer["page"] = str(page)
    return Outcome(answer, lambda console: against.print_against(found, console))

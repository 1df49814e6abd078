"""Writes the report and compares it with the one that is there: from records and experiments alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from efftx.core.files import sweep, write_atomically, writing
from efftx.errors import UserError
from efftx.report import markup, render
from efftx.report.chapters import chapters
from efftx.report.drawings import DRAWN_WITH, all_drawings
from efftx.report.items import Item, gather
from efftx.report.provenance import machines
from efftx.report.tables import tables
from efftx.study.experiment import Experiment
from efftx.study.papers import Paper, reading_order
from efftx.study.records import RecordStore

FOLDER = "report"
_ENDINGS = (".html", ".md", ".tex", ".csv", ".svg")


def compose_report(
    store: RecordStore, experiments: Iterable[Experiment], papers: Sequence[Paper] = ()
) -> dict[str, str]:
    """Every file of the report that the records under `store` give, name -> text, in the order of `papers`.

    What was rehearsed at size smoke stands in none of them, unless an item has no other size.
    """
    items = [gather(store, each, each.sizes_of_evidence()) for each in reading_order(experiments, papers)]
    _ask_for_names_of_their_own(items)
    files: dict[str, str] = {}
    drawn = {item.slug: all_drawings(item) for item in items}
    by_paper = chapters(items, papers)
    letters = machines(item for chapter in by_paper for item in chapter.items)
    for item in items:
        files[f"{item.slug}.md"] = render.item_markdown(item, drawn[item.slug], letters)
        files[f"{item.slug}.tex"] = render.item_latex(item)
        files[f"{item.slug}.csv"] = markup.to_csv(tables(item))
        for drawing in drawn[item.slug]:
            files[f"{drawing.name}.svg"] = drawing.svg
            files[f"{drawing.name}.csv"] = drawing.csv
    files["README.md"] = render.index_markdown(by_paper)
    files["index.html"] = render.page(by_paper, drawn, DRAWN_WITH)
    return dict(sorted(files.items()))


def _ask_for_names_of_their_own(items: Sequence[Item]) -> None:
    """UserError where two items would write the same files."""
    ids: dict[str, str] = {}
    for item in items:
        other = ids.setdefault(item.slug.lower(), item.experiment.id)
        if other != item.experiment.id:
            message = f"the items '{other}' and '{item.experiment.id}' would write the same files, {item.slug}.*"
            raise UserError("bad_experiment", message, "Give one of them another id.")


def build_report(
    store_root: Path | str | None,
    experiments: Iterable[Experiment],
    out: Path | None = None,
    papers: Sequence[Paper] = (),
) -> list[Path]:
    """Write the report into `out` (`<results>/report` where none is given) and return what was written.

    All of it is composed before anything is written, every file whole or not at all; files that an earlier report left
    there and that this one no longer has are removed last. UserError where it cannot be written.
    """
    store = RecordStore(store_root)
    report = compose_report(store, experiments, papers)
    out = out or store.root / FOLDER
    with writing(out, "set EFFTX_RESULTS to another place"):
        store.sweep()
        out.mkdir(parents=True, exist_ok=True)
        sweep(out)
        there = {path.name: path.read_bytes() for path in _files_in(out)}
        for name, text in report.items():
            if there.pop(name, None) != text.encode():
                write_atomically(out / name, text.encode())
        for name in there:
            (out / name).unlink()
    return [out / name for name in report]


def check_report(
    store_root: Path | str | None,
    experiments: Iterable[Experiment],
    out: Path | None = None,
    papers: Sequence[Paper] = (),
) -> list[str]:
    """What in the committed report is not what the records give, a line a file; empty where it all agrees.

    Byte for byte; drawings only where the same matplotlib drew them, otherwise the data that they were drawn from.
    """
    store = RecordStore(store_root)
    report = compose_report(store, experiments, papers)
    out = out or store.root / FOLDER
    there = {path.name: path.read_bytes().decode("utf-8", "replace") for path in _files_in(out)} if out.is_dir() else {}
    same_pen = DRAWN_WITH in there.get("index.html", DRAWN_WITH)
    trouble = []
    for name in sorted({*report, *there}):
        if name not in there:
            trouble.append(f"{name}: missing")
        elif name not in report:
            trouble.append(f"{name}: the records give no such file")
        elif not same_pen and name.endswith(".svg"):
            continue
        elif _compared(there[name], name, same_pen) != _compared(report[name], name, same_pen):
            trouble.append(f"{name}: {_first_difference(there[name], report[name])}")
    return trouble


def _files_in(folder: Path) -> Sequence[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _ENDINGS)


def _compared(text: str, name: str, same_pen: bool) -> str:
    if same_pen or name != "index.html":
        return text
    return re.sub(r"drawn with matplotlib [^.<]*[0-9.]*", "", re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))


def _first_difference(there: str, here: str) -> str:
    pairs = enumerate(zip(there.splitlines(), here.splitlines(), strict=False), start=1)
    line = next((i for i, (a, b) in pairs if a != b), None)
    return f"differs from line {line}" if line is not None else "one ends before the other"

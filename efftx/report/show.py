"""One item as the command prints it, for people and as JSON; nothing here draws or reads a drawing library."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from efftx.core.counts import count
from efftx.core.grid import print_text
from efftx.report import markup
from efftx.report.badges import BADGES
from efftx.report.fairness import sweep_tables
from efftx.report.items import gather
from efftx.report.tables import tables
from efftx.report.trends import trend_plots, trends_json
from efftx.study.aggregation import CellValue, cells, published_alone
from efftx.study.claims import NOT_RUN, Verdict
from efftx.study.comparisons import Comparison
from efftx.study.experiment import Experiment
from efftx.study.records import RecordStore

if TYPE_CHECKING:
    from efftx.study.composer import Composer

_TERMINAL = {"holds": "green", "fails": "red", "open": "yellow", "untested": "dim", "notrun": "dim"}


def print_item(
    experiment: Experiment,
    store_root: Path | str | None = None,
    *,
    console: Console,
    size: str = "",
    composer: Composer | None = None,
) -> None:
    """Print an item's tables, published beside measured, and its claims with their verdicts, or those of one size.

    Of chosen rows only these, and the claims that could be judged; what is left out is counted.
    """
    item = gather(RecordStore(store_root), experiment, [size] if size else [], composer)
    part = "".join([f", size {size}" if size else "", ", chosen rows" if experiment.chosen else ""])
    print_text(console, f"{experiment.id}{part}: {item.state}{f' ({item.why})' if item.why else ''}", style="bold")
    for table in [*tables(item), *sweep_tables(item)]:
        console.print()
        markup.to_terminal(table, console)
    for plot in (plot for measured in item.measured for plot in trend_plots(item, measured)):
        console.print()
        print_text(console, plot.caption)
    for at, verdicts in item.verdicts_by_size:
        shown = [verdict for verdict in verdicts if not experiment.chosen or verdict.verdict != NOT_RUN]
        if shown:
            console.print()
            print_text(console, f"Claims, size {at}" if at else "Claims", style="bold")
        for verdict in shown:
            style, sign = BADGES[verdict.verdict]
            print_text(console, f"{sign} {verdict.verdict}: {verdict.says}", _TERMINAL[style], hanging=2)
            print_text(console, verdict.why, indent=4)
    if experiment.chosen:
        n_rows = len([row for row in experiment.rows_at(size) if not experiment.is_chosen(row)])
        n_claims = len([verdict for verdict in item.verdicts if verdict.verdict == NOT_RUN])
        others = f"{count(n_rows, 'other row')} and {count(n_claims, 'claim')} that they would decide"
        console.print()
        print_text(console, f"Not shown: {others}; `efftx report {experiment.id}` shows all.")


def item_json(
    experiment: Experiment, store_root: Path | str | None = None, *, size: str = "", composer: Composer | None = None
) -> dict[str, Any]:
    """An item as JSON: `id`, `state`, `cells` and `trends` of all sizes with records or of `size`, `claims` at the
    foremost one."""
    item = gather(RecordStore(store_root), experiment, [size] if size else [], composer)
    shown = [cell for measured in item.measured for cell in measured.cells.values()]
    if not item.measured:
        shown = cells(experiment, [], size or experiment.usual_size())
    shown += published_alone(experiment, {cell.row for cell in shown})
    at = item.foremost.size if item.foremost else None
    return {
        "id": experiment.id,
        "state": item.state,
        "why": item.why,
        "cells": [_cell_json(cell) for cell in shown],
        "published_curves": dict(experiment.published.curves) if experiment.published else {},
        "claims": [_claim_json(verdict, at) for verdict in item.verdicts],
        "trends": [trend for measured in item.measured for trend in trends_json(item, measured)],
    }


def _cell_json(cell: CellValue) -> dict[str, Any]:
    names = ("row", "column", "size", "mean", "std", "n", "published", "published_source")
    return {name: getattr(cell, name) for name in names}


def _claim_json(verdict: Verdict, size: str | None) -> dict[str, Any]:
    answer = {name: getattr(verdict.claim, name) for name in ("says", "by", "quote", "kind", "margin")}
    answer |= {"verdict": verdict.verdict, "why": verdict.why, "size": size}
    return {**answer, "comparisons": [_comparison_json(comparison) for comparison in verdict.comparisons]}


def _comparison_json(c: Comparison) -> dict[str, Any]:
    """Numbers of one comparison; what is infinite (a level never reached) is null."""
    return {
        "left": c.left.words,
        "symbol": c.symbol,
        "right": c.right.words,
        "difference": c.difference if math.isfinite(c.difference) else None,
        "interval": list(c.interval) if c.interval else None,
        **{name: getattr(c, name) for name in ("n", "p", "p_of", "outcome", "seeds")},
    }

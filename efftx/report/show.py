"""One item as the command prints it, for people and as JSON; nothing here draws or reads a drawing library."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console

from efftx.core.grid import print_text
from efftx.report import markup
from efftx.report.badges import BADGES
from efftx.report.fairness import sweep_tables
from efftx.report.items import gather
from efftx.report.tables import tables
from efftx.report.trends import trend_plots, trends_json
from efftx.study.aggregation import CellValue, cells, published_alone
from efftx.study.claims import Verdict
from efftx.study.comparisons import Comparison
from efftx.study.experiment import Experiment
from efftx.study.records import RecordStore

_TERMINAL = {"holds": "green", "fails": "red", "open": "yellow", "untested": "dim", "notrun": "dim"}


def print_item(experiment: Experiment, store_root: Path | str | None = None, *, console: Console) -> None:
    """Print an item's tables, published beside measured, and its claims with their verdicts."""
    item = gather(RecordStore(store_root), experiment)
    print_text(console, f"{experiment.id}: {item.state}{f' ({item.why})' if item.why else ''}", style="bold")
    for table in [*tables(item), *sweep_tables(item)]:
        console.print()
        markup.to_terminal(table, console)
    for plot in (plot for measured in item.measured for plot in trend_plots(item, measured)):
        console.print()
        print_text(console, plot.caption)
    for size, verdicts in item.verdicts_by_size:
        if verdicts:
            console.print()
            print_text(console, f"Claims, size {size}" if size else "Claims", style="bold")
        for verdict in verdicts:
            style, sign = BADGES[verdict.verdict]
            print_text(console, f"{sign} {verdict.verdict}: {verdict.says}", _TERMINAL[style], hanging=2)
            print_text(console, verdict.why, indent=4)


def item_json(experiment: Experiment, store_root: Path | str | None = None) -> dict[str, Any]:
    """An item as JSON: `id`, `state`, `cells` and `trends` of all sizes with records, `claims` at the foremost one."""
    item = gather(RecordStore(store_root), experiment)
    found = [cell for measured in item.measured for cell in measured.cells.values()]
    if not item.measured:
        found = cells(experiment, [], experiment.usual_size())
    found += published_alone(experiment, {cell.row for cell in found})
    size = item.foremost.size if item.foremost else None
    return {
        "id": experiment.id,
        "state": item.state,
        "why": item.why,
        "cells": [_cell_json(cell) for cell in found],
        "published_curves": dict(experiment.published.curves) if experiment.published else {},
        "claims": [_claim_json(verdict, size) for verdict in item.verdicts],
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

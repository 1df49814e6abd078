"""The figure that `figure.trend` asks for: gaps against one size, a panel an arm, a line a value of the other."""

from __future__ import annotations

import re
from typing import Any

from efftx.core.counts import count
from efftx.report import numbers
from efftx.report.items import Item, Measured
from efftx.report.plotdata import Line, Plot, Point
from efftx.study.significance import MIN_SEEDS
from efftx.study.trend import Estimate, Fit, Gaps, fit, gaps_of

EACH_SEED, FITTED = "each seed", "fitted, with its 95 % interval"


def trend_plots(item: Item, measured: Measured) -> list[Plot]:
    """One panel an arm: the gap of every seed as points, the fitted plane as lines with half the interval's width.

    Empty where the experiment asks for none or nothing was measured; UserError for a `figure.trend` that cannot be.
    """
    trend = (item.experiment.figure or {}).get("trend")
    if trend is None:
        return []
    plots = []
    for arm, gaps in gaps_of(item.experiment, measured.cells, measured.size).items():
        title, slopes = f"{arm} less {trend['against']}", fit(gaps)
        plots.append(
            Plot(
                caption=_caption(title, slopes, str(trend["over"]), str(trend["beside"]), item.experiment.cell.unit),
                x_label=str(trend.get("x_label", trend["over"])),
                y_label=f"gap ({item.experiment.cell.unit})",
                lines=_lines(gaps, slopes, str(trend["beside"])),
                log_x=True,
                panel="gap-" + re.sub(r"[^a-z0-9]+", "-", arm.lower()),
                title=f"{title}, size {measured.size}",
            )
        )
    return plots


def trends_json(item: Item, measured: Measured) -> list[dict[str, Any]]:
    """The fits as JSON: `size`, `arm`, `against`, `n` seeds, and of each size the `mean` and `interval` a doubling."""
    trend = (item.experiment.figure or {}).get("trend")
    if trend is None:
        return []
    trends = []
    for arm, gaps in gaps_of(item.experiment, measured.cells, measured.size).items():
        if fitted := fit(gaps):
            slopes = {trend["over"]: fitted.over, trend["beside"]: fitted.beside}
            doublings = {name: {"mean": e.mean, "interval": e.interval} for name, e in slopes.items()}
            of_arm = {"size": measured.size, "arm": arm, "against": trend["against"]}
            trends.append({**of_arm, "n": fitted.n, "a_doubling_of": doublings})
    return trends


def _lines(gaps: Gaps, trend: Fit | None, beside: str) -> tuple[Line, ...]:
    """All points first, so that they are drawn as such, then the lines."""
    places = {width: sorted(place for place in gaps if place[0] == width) for width in sorted({at for at, _ in gaps})}
    lines = []
    for width, at in places.items():
        points = tuple(Point(place[1], value) for place in at for value in gaps[place].values())
        lines.append(Line(f"{beside} {width:g}", "measured", points, EACH_SEED))
    if trend is None:
        return tuple(lines)
    for width, at in places.items():
        fitted = tuple(_fitted(over, trend.at(over, width), trend.n) for _, over in at)
        lines.append(Line(f"{beside} {width:g}", "measured", fitted, FITTED))
    return tuple(lines)


def _fitted(over: float, estimate: Estimate, n: int) -> Point:
    half = None if estimate.interval is None else (estimate.interval[1] - estimate.interval[0]) / 2
    return Point(over, estimate.mean, n=n, half_width=half)


def _caption(title: str, trend: Fit | None, over: str, beside: str, unit: str) -> str:
    if trend is None:
        return f"{title}: too few places for a line; it takes two values of {over} and two of {beside}, at one seed."
    text = f"{title}, {count(trend.n, 'seed')}, least squares in the logarithms of both sizes."
    if trend.n < MIN_SEEDS:
        text += f" An interval takes {MIN_SEEDS} seeds."
    return " ".join((text, slope(trend.over, over, unit), slope(trend.beside, beside, unit)))


def slope(estimate: Estimate, size: str, unit: str) -> str:
    """What a doubling of `size` does to the gap, with the interval, and in words where that leaves the sign open."""
    if estimate.interval is None:
        return f"The gap changes by {_signed(estimate.mean, None)} {unit} a doubling of {size}."
    low, high = estimate.interval
    digits = numbers.decimals((high - low) / 2)
    text = (
        f"The gap changes by {_signed(estimate.mean, digits)} {unit} a doubling of {size} "
        f"(95 % interval {_signed(low, digits)} to {_signed(high, digits)})"
    )
    if estimate.includes_zero:
        return f"{text}: the interval includes 0, so that no trend with {size} is shown."
    return f"{text}: it {'falls' if estimate.mean < 0 else 'rises'} with {size}."


def _signed(value: float, digits: int | None) -> str:
    """`+0.012` or `-0.012`."""
    text = numbers.with_decimals(abs(value), digits)
    return text if not float(re.sub(r"[^0-9.]", "", text)) else f"{'-' if value < 0 else '+'}{text}"

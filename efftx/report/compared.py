"""Two runs side by side: the keys in which they differ, their metrics, and their curves over each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from efftx.core.grid import Column, Grid, print_text
from efftx.errors import UserError
from efftx.evaluation.metrics import heading
from efftx.report.figures import draw
from efftx.report.plotdata import Line, Plot, Point
from efftx.runs.run_directory import read_metrics, read_result, stored_config

VALID = "valid_"
"""What the names of validation metrics in a run's log begin with."""
MOST_STEPS = 12
"""Steps of a curve that are printed."""


@dataclass(frozen=True)
class Side:
    """One run: its flat configuration, its metrics (empty before its end) and its validation curve, metric by step."""

    run: Path
    config: Mapping[str, Any]
    hash: str
    metrics: Mapping[str, float]
    curve: Mapping[str, Mapping[int, float]]

    @property
    def step(self) -> int:
        """The last step of its curve, 0 without one."""
        return max((step for points in self.curve.values() for step in points), default=0)


@dataclass(frozen=True)
class Compared:
    """Two runs, and what differs."""

    a: Side
    b: Side

    @property
    def keys(self) -> dict[str, tuple[Any, Any]]:
        """The keys with different values, where a run lies apart; None where a run does not have the key."""
        both = [key for key in dict.fromkeys([*self.a.config, *self.b.config]) if key != "run_dir"]
        pairs = {key: (self.a.config.get(key), self.b.config.get(key)) for key in both}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}

    @property
    def metrics(self) -> dict[str, tuple[float, float]]:
        """The metrics on the test split that both have."""
        return {name: (value, self.b.metrics[name]) for name, value in self.a.metrics.items() if name in self.b.metrics}

    @property
    def curves(self) -> dict[str, dict[int, tuple[float | None, float | None]]]:
        """The validation metrics that both have, at every step of either."""
        curves = {}
        for name in (name for name in self.a.curve if name in self.b.curve):
            a, b = self.a.curve[name], self.b.curve[name]
            curves[name] = {step: (a.get(step), b.get(step)) for step in sorted({*a, *b})}
        return curves

    def to_json(self) -> dict[str, Any]:
        """All of it in plain JSON."""
        return {
            "runs": [str(self.a.run), str(self.b.run)],
            "hashes": [self.a.hash, self.b.hash],
            "keys": {key: list(pair) for key, pair in self.keys.items()},
            "metrics": {name: list(pair) for name, pair in self.metrics.items()},
            "curves": {
                name: [{"step": step, "values": list(pair)} for step, pair in points.items()]
                for name, points in self.curves.items()
            },
        }


def compare(a: Path, b: Path) -> Compared:
    """The runs at `a` and `b`, finished or not; UserError where one is no run or is damaged."""
    return Compared(_side(a), _side(b))


def show(comparison: Compared, console: Console) -> None:
    """What differs, as people read it."""
    print_text(console, f"a  {comparison.a.run}\nb  {comparison.b.run}\n")
    if comparison.keys:
        table = Grid([Column("key"), Column("a"), Column("b")])
        for key, (a, b) in comparison.keys.items():
            table.row(key, _value(a), _value(b))
        table.print(console)
    else:
        print_text(console, "Both have the same configuration.")
    if comparison.metrics:
        console.print()
        table = Grid([Column("at the end, test"), *(Column(name, numbers=True) for name in ("a", "b", "b - a"))])
        for name, (a, b) in comparison.metrics.items():
            table.row(heading(name), _number(a), _number(b), f"{b - a:+z.4f}")
        table.print(console)
    for name, points in comparison.curves.items():
        console.print()
        table = Grid([Column("step", numbers=True), *(Column(side, numbers=True) for side in ("a", "b", "b - a"))])
        for step in _some(list(points)):
            one, other = points[step]
            apart = "" if one is None or other is None else f"{other - one:+z.4f}"
            table.row(f"{step:,}", _number(one), _number(other), apart)
        print_text(console, f"{heading(name)}, validation")
        table.print(console)


def drawn(comparison: Compared) -> str:
    """The curves of the loss over each other as SVG; UserError where the runs have none in common."""
    name = next((name for name in ("bits_per_dim", "loss", *comparison.curves) if name in comparison.curves), None)
    if name is None:
        hint = "A run has a point for every evaluation.every steps."
        raise UserError("no_curve", "The two runs have no validation metric in common.", hint)
    lines = tuple(
        Line(label, "measured", tuple(Point(step, value) for step, value in sorted(side.curve[name].items())))
        for label, side in (("a", comparison.a), ("b", comparison.b))
    )
    caption = f"a: {comparison.a.run}, b: {comparison.b.run}"
    return draw(Plot(caption, "training step", f"validation {heading(name)}", lines, names=("a", "b")))


def _side(run: Path) -> Side:
    config, digest = stored_config(run)
    result = read_result(run) or {}
    curve: dict[str, dict[int, float]] = {}
    for line in read_metrics(run):
        for name, value in line.items():
            if name.startswith(VALID) and value is not None:
                curve.setdefault(name.removeprefix(VALID), {})[int(line["step"])] = float(value)
    return Side(run, _flat(config), digest, result.get("metrics", {}), curve)


def _flat(node: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return flat


def _some(steps: list[int]) -> list[int]:
    """At most `MOST_STEPS` of them, the first and the last among them."""
    if len(steps) <= MOST_STEPS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (MOST_STEPS - 1))] for i in range(MOST_STEPS)]


def _value(value: Any) -> str:
    return "–" if value is None else "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:z.4f}"

"""Why a verdict is what it is, in one sentence: both sides with spread, their difference, its interval, n, p."""

from __future__ import annotations

import math
from collections.abc import Sequence

from efftx.report import numbers
from efftx.reproduce.claim_language import AS_GOOD_AS, EXACT
from efftx.reproduce.claims import Verdict
from efftx.reproduce.comparisons import CONTRADICTED, HOLDS, UNDECIDED, Comparison, Side
from efftx.reproduce.experiment import Experiment
from efftx.reproduce.significance import MIN_SEEDS, MOST_SEEDS

_COUNTED = {
    HOLDS: ("holds", "hold"),
    CONTRADICTED: ("is contradicted", "are contradicted"),
    UNDECIDED: ("is undecided", "are undecided"),
}


def why(verdict: Verdict, experiment: Experiment) -> str:
    """The comparison that decided the verdict (the least sure of those that gave it), and how many there were."""
    comparisons = verdict.comparisons
    if not comparisons:
        return verdict.why
    same = [c for c in comparisons if c.outcome == verdict.verdict] or list(comparisons)
    text = comparison(_telling(same), experiment, len(comparisons))
    if len(comparisons) > 1:
        text = f"{_counted(comparisons)}; {'the closest: ' if len(same) > 1 else ''}{text}"
    if verdict.untested:
        text += f"; {verdict.untested} more of which neither side was reached"
    return text


def _counted(comparisons: Sequence[Comparison]) -> str:
    counts = {outcome: sum(c.outcome == outcome for c in comparisons) for outcome in _COUNTED}
    told = ", ".join(f"{n} {_COUNTED[outcome][n > 1]}" for outcome, n in counts.items() if n)
    return f"of {len(comparisons)} comparisons {told}"


def comparison(c: Comparison, experiment: Experiment, n_tests: int) -> str:
    """One comparison as a sentence: `LSH-4 (74.3 ± 0.3) is 15.0 points below LSH-1 (89.3 ± 0.2), 95 % interval ...`."""
    shared, names = _names(c)
    left, right = (_side(side, name, experiment) for side, name in zip((c.left, c.right), names, strict=True))
    difference, interval = c.difference, c.interval
    below = difference < 0
    if math.isinf(difference):
        text = f"{left} against {right}"
    elif difference == 0:
        text = f"{left} is equal to {right}"
    else:
        digits = numbers.decimals((interval[1] - interval[0]) / 2 if interval else 0.0)
        told = numbers.with_decimals(abs(difference), digits)
        text = f"{left} is {told}{_unit(c, told)} {'below' if below else 'above'} {right}"
        if interval:
            low, high = (-interval[1], -interval[0]) if below else interval
            text += f", 95 % interval {numbers.with_decimals(low, digits)} to {numbers.with_decimals(high, digits)}"
    parts = [f"{shared}: {text}" if shared else text]
    if c.kind == AS_GOOD_AS and c.margin is not None:
        parts.append(f"margin {c.margin:g}{_unit(c, f'{c.margin:g}')}")
    parts.append(f"{c.n} seed{'s' if c.n != 1 else ''}")
    if c.kind == EXACT:
        parts.append("exact")
    elif c.p is not None:
        parts.append(f"one-sided p {_p(c.p)}" + (f" (Holm over {n_tests})" if n_tests > 1 else ""))
    return ", ".join(parts) + _what_would_decide(c)


def _unit(c: Comparison, told: str) -> str:
    """The unit after a difference that reads `told`: percentages differ by points, ratios have none."""
    unit = {"%": "point" if told == "1" else "points", "x": ""}.get(c.unit, c.unit)
    return f" {unit}" if unit else ""


def _what_would_decide(c: Comparison) -> str:
    if c.outcome != UNDECIDED or c.kind == EXACT:
        return ""
    if c.n < MIN_SEEDS:
        return f"; too few seeds, a verdict needs {MIN_SEEDS}"
    if c.p_for is None:
        return "; some seeds never reached it, so there is no mean to test"
    if c.seeds is not None:
        return f"; about {c.seeds:,} seeds would decide it (80 % power at this difference and spread)"
    if c.differences.std() == 0.0:
        return "; equal in every seed"
    return f"; more than {MOST_SEEDS:,} seeds would be needed to decide it at this difference and spread"


def _telling(same: list[Comparison]) -> Comparison:
    """Of comparisons with one outcome the one with the largest p; of exact ones that with the smallest difference."""
    return max(same, key=lambda c: (c.p if c.p is not None else -1.0, c.seeds or 0, -abs(c.difference)))


def _names(c: Comparison) -> tuple[str, tuple[str, str]]:
    """What both sides share (row or column), and what each is called beside it."""
    if c.left.place and c.right.place:
        (row, column), (other_row, other_column) = c.left.place, c.right.place
        if column == other_column:
            return f"column {column}" if column else "", (row, other_row)
        if row == other_row:
            return f"row {row}", (column, other_column)
    return "", (c.left.words, c.right.words)


def _side(side: Side, name: str, experiment: Experiment) -> str:
    if not side.measured:
        return name
    if math.isinf(side.mean):
        return f"{name} (never)"
    if side.place:
        told = numbers.mean_and_spread(side.mean, side.std, experiment.cell_of(*side.place))
    else:
        told = f"{side.mean:.4g}" + (f" ± {side.std:.2g}" if side.std is not None else "")
    return f"{name} ({told})"


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"

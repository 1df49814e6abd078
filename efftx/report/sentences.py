"""What decided a verdict: one plain sentence with its numbers and interval, and all of its comparisons at length."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from efftx.report import numbers
from efftx.report.units import scale, time_unit
from efftx.study.claim_language import AS_GOOD_AS, EXACT
from efftx.study.claims import Verdict
from efftx.study.comparisons import CONTRADICTED, HOLDS, UNDECIDED, Comparison, Side
from efftx.study.experiment import Claim, Experiment
from efftx.study.significance import MIN_SEEDS, MOST_SEEDS

_COUNTED = {
    HOLDS: ("holds", "hold"),
    CONTRADICTED: ("is contradicted", "are contradicted"),
    UNDECIDED: ("is undecided", "are undecided"),
}
_NUMBER = re.compile(r"-?[\d,.]+(×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?")
_TESTS = {
    "better": "one-sided t test, seed paired with seed",
    "at least": "one-sided t test against the stated value",
    "as good as": "t test that the difference is not beyond the margin, seed paired with seed",
    "exact": "met by every seed or not; no test",
}


def why(verdict: Verdict, experiment: Experiment) -> str:
    """The comparison that decided the verdict (the least sure of those that gave it), and how many there were."""
    comparisons = verdict.comparisons
    if not comparisons:
        return verdict.why
    same = [c for c in comparisons if c.outcome == verdict.verdict] or list(comparisons)
    text = short(_telling(same), experiment)
    if len(comparisons) > 1:
        text = f"{_counted(comparisons)}; {'the closest: ' if len(same) > 1 else ''}{text}"
    if verdict.untested:
        text += f"; {verdict.untested} more of which neither side was reached"
    return text


def how_tested(claim: Claim) -> str:
    """How the claim is tested, in words: the kind of test, the margin and why it is that large."""
    margin = f"; margin {claim.margin:g}" if claim.margin is not None else ""
    return f"{claim.kind}: {_TESTS[claim.kind]}{margin}{f' ({claim.reason})' if claim.reason else ''}"


def formula(claim: Claim) -> str:
    """The claim's expression in one line, and what its free names stand for."""
    return " ".join(claim.holds_if.split()) + (f" where {claim.where}" if claim.where else "")


def details(verdict: Verdict, experiment: Experiment) -> list[str]:
    """Every comparison of the claim at length, each with its outcome where there are several."""
    comparisons = verdict.comparisons
    texts = [at_length(c, experiment, len(comparisons)) for c in comparisons]
    if len(texts) < 2:
        return texts
    return [f"{c.outcome}: {text}" for c, text in zip(comparisons, texts, strict=True)]


def short(c: Comparison, experiment: Experiment) -> str:
    """One comparison as a sentence: `LSH-4 is 15.0 points below LSH-1 (at one round), 95 % interval ..., 3 seeds`."""
    shared, (left, right) = _names(c, experiment)
    is_number = bool(_NUMBER.fullmatch(right))
    right += f" {c.unit}" if is_number and c.unit not in ("", "x") else ""
    where = f" ({shared})" if shared and c.left.place and c.left.place[1] else ""
    if shared and not where:
        left = f"{shared}: {left}"
    if c.left.place and right.startswith("the paper's "):
        right = f"the paper's {_value(c.right, experiment, c.left)}"
    if c.left.place and not c.right.measured and not math.isinf(c.difference):
        left = f"{left} is {_value(c.left, experiment)}"
        met = left if c.kind == EXACT and is_number else f"{left}, equal to {right}"
        text = f"{left}, {_difference(c, experiment)} {right}" if c.difference else met
    else:
        text = _compared(c, experiment, left, right) + where
    return text + _ending(c, experiment, brief=True)


def at_length(c: Comparison, experiment: Experiment, n_tests: int) -> str:
    """One comparison with the mean and spread of both sides, its interval, margin, n and p."""
    shared, names = _names(c, experiment)
    left, right = (
        f"{name} ({_value(side, experiment)})" if side.measured else name
        for side, name in zip((c.left, c.right), names, strict=True)
    )
    text = _compared(c, experiment, left, right)
    if c.kind != EXACT and c.p is not None:
        of = " of the opposite" if c.p_of == "opposite" else ""
        p = f", one-sided p{of} {_p(c.p)}" + (f" (Holm over {n_tests})" if n_tests > 1 else "")
    else:
        p = ""
    return f"{f'{shared}: ' if shared else ''}{text}{_ending(c, experiment, brief=False, p=p)}"


def _compared(c: Comparison, experiment: Experiment, left: str, right: str) -> str:
    if math.isinf(c.difference):
        return f"{left} against {right}"
    return f"{left} is {_difference(c, experiment)} {right}" if c.difference else f"{left} is equal to {right}"


def _difference(c: Comparison, experiment: Experiment) -> str:
    """`15.0 points below`."""
    unit, factor = time_unit(c.unit, abs(c.difference))
    amount = numbers.with_decimals(abs(c.difference) * factor, _decimals(c, factor))
    return f"{amount}{_unit(unit, amount)} {'below' if c.difference < 0 else 'above'}"


def _decimals(c: Comparison, factor: float) -> int | None:
    return numbers.decimals((c.interval[1] - c.interval[0]) / 2 * factor) if c.interval else None


def _ending(c: Comparison, experiment: Experiment, *, brief: bool, p: str = "") -> str:
    """Interval, margin, seeds, and what would decide it."""
    parts = []
    unit, factor = time_unit(c.unit, abs(c.difference))
    if c.interval and c.difference and math.isfinite(c.difference):
        low, high = (-c.interval[1], -c.interval[0]) if c.difference < 0 else c.interval
        ends = [numbers.with_decimals(end * factor, _decimals(c, factor)) for end in (low, high)]
        parts.append(f"95 % interval {ends[0]} to {ends[1]}")
    if c.kind == AS_GOOD_AS and c.margin is not None:
        parts.append(f"margin {c.margin * factor:g}{_unit(unit, f'{c.margin * factor:g}')}")
    parts.append(numbers.count(c.n, "seed"))
    if c.kind == EXACT:
        parts.append("exact")
    return "".join(f", {part}" for part in parts) + p + _what_would_decide(c, brief)


def _unit(unit: str, amount: str) -> str:
    """The unit after a difference that reads `amount`: percentages differ by points, ratios have none."""
    unit = {"%": "point" if amount == "1" else "points", "x": ""}.get(unit, unit)
    return f" {unit}" if unit else ""


def _what_would_decide(c: Comparison, brief: bool) -> str:
    if c.outcome != UNDECIDED:
        return ""
    if c.kind == EXACT:
        return "; it differs from seed to seed, so that nothing exact can be said: another kind of claim tests it"
    if c.n < MIN_SEEDS:
        return f"; too few seeds, a verdict needs {MIN_SEEDS}"
    if c.p_for is None:
        return "; some seeds never reached it, so there is no mean to test"
    if c.seeds is not None:
        return f"; about {c.seeds:,} seeds would decide it" + (
            "" if brief else " (80 % power at this difference and spread)"
        )
    if c.differences.std() == 0.0:
        return "; equal in every seed"
    return f"; more than {MOST_SEEDS:,} seeds would be needed to decide it" + (
        "" if brief else " at this difference and spread"
    )


def _counted(comparisons: Sequence[Comparison]) -> str:
    """How many comparisons came out how, and what each is of: `all 6 comparisons hold (one a row)`."""
    n = len(comparisons)
    counts = {outcome: sum(c.outcome == outcome for c in comparisons) for outcome in _COUNTED}
    of_what = _of_what(comparisons)
    for outcome, (_, plural) in _COUNTED.items():
        if counts[outcome] == n:
            return f"{'both' if n == 2 else f'all {n}'} comparisons{of_what} {plural}"
    outcomes = ", ".join(f"{n} {_COUNTED[outcome][n > 1]}" for outcome, n in counts.items() if n)
    return f"of {n} comparisons{of_what} {outcomes}"


def _of_what(comparisons: Sequence[Comparison]) -> str:
    """What the free names of the claim ran over: ` (3 rows, 2 columns)`; empty where there are none."""
    names = dict.fromkeys(name for c in comparisons for name in c.binding)
    ranges = {name: len({c.binding[name] for c in comparisons if name in c.binding}) for name in names}
    ranged = ", ".join(numbers.count(n, name) for name, n in ranges.items())
    return f" ({ranged})" if ranged else ""


def _telling(same: list[Comparison]) -> Comparison:
    """Of comparisons with one outcome the one with the largest p; of exact ones that with the smallest difference."""
    return max(same, key=lambda c: (c.p if c.p is not None else -1.0, c.seeds or 0, -abs(c.difference)))


def _names(c: Comparison, experiment: Experiment) -> tuple[str, tuple[str, str]]:
    """What both sides share (row or column), and what each is called beside it."""
    if c.left.place and c.right.place:
        (row, column), (other_row, other_column) = c.left.place, c.right.place
        if column == other_column:
            return experiment.column_label(row, column), (experiment.label(row), experiment.label(other_row))
        if row == other_row:
            columns = (experiment.column_label(row, column), experiment.column_label(row, other_column))
            return experiment.label(row), columns
    return "", (_called(c.left, experiment), _called(c.right, experiment))


def _called(side: Side, experiment: Experiment) -> str:
    """A side by itself: `speed-up of LSH-4`, or `LSH-4 (1,024 tokens)` where the column has a name for sentences."""
    if not side.place:
        return numbers.raised(side.words)
    row, column = side.place
    if (label := experiment.column_label(row, column)) != column:
        return f"{experiment.label(row)} ({label})"
    return f"{column} of {experiment.label(row)}" if column else experiment.label(row)


def _value(side: Side, experiment: Experiment, like: Side | None = None) -> str:
    """A side's mean and spread in the format of its cell, or of that of `like`; times in the unit of their size."""
    if math.isinf(side.mean):
        return "never"
    place = (like or side).place
    if not place:
        return f"{side.mean:.4g}" + (f" ± {side.std:.2g}" if side.std is not None else "")
    scaled = scale(experiment.cell_of(*place), [side.mean])
    text = scaled.written(side.mean, None if like else side.std)
    return text + (f" {scaled.form.unit}" if scaled.factor != 1.0 else "")


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"

"""What decided a verdict: one plain sentence with its numbers and interval, and all of its comparisons at length."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from efftx.core.counts import count
from efftx.report import numbers
from efftx.report.units import Scale, scale, time_unit
from efftx.study.claim_language import AS_GOOD_AS, EXACT
from efftx.study.claims import Verdict
from efftx.study.comparisons import CONTRADICTED, HOLDS, UNDECIDED, Comparison, Side
from efftx.study.experiment import Cell, Claim, Experiment
from efftx.study.significance import MIN_SEEDS, MOST_SEEDS, TESTED

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


Scales = Mapping[Cell, Scale]
"""The unit of each form of a table: a sentence has its numbers in the unit of the table."""


def why(verdict: Verdict, experiment: Experiment, scales: Scales | None = None) -> str:
    """The comparison that decided the verdict (the least sure of those that gave it), and how many there were."""
    comparisons = verdict.comparisons
    if not comparisons:
        return verdict.why
    same = [c for c in comparisons if c.outcome == verdict.verdict] or list(comparisons)
    text = short(_telling(same), experiment, scales)
    if len(comparisons) > 1:
        which = "the closest: " if verdict.claim.kind == EXACT else "the least sure: "
        text = f"{_counted(comparisons)}; {which if len(same) > 1 else ''}{text}"
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


def details(verdict: Verdict, experiment: Experiment, scales: Scales | None = None) -> list[str]:
    """Every comparison of the claim at length, each with its outcome where there are several."""
    comparisons = verdict.comparisons
    texts = [at_length(c, experiment, len(comparisons), scales) for c in comparisons]
    if len(texts) < 2:
        return texts
    return [f"{c.outcome}: {text}" for c, text in zip(comparisons, texts, strict=True)]


def short(c: Comparison, experiment: Experiment, scales: Scales | None = None) -> str:
    """One comparison as a sentence: `LSH-4 is 15.0 points below LSH-1 (at one round), 90 % interval ..., 3 seeds`."""
    shown = _Shown(c, experiment, scales or {})
    shared, (left, right) = _names(c, experiment)
    is_number = bool(_NUMBER.fullmatch(right))
    if is_number:
        right = shown.constant(right)
    where = f" ({shared})" if shared and c.left.place and c.left.place[1] else ""
    if shared and not where:
        left = f"{shared}: {left}"
    if c.left.place and c.right.printed is not None:
        right = f"the paper's {shown.value(c.right)}"
    if c.left.place and not c.right.measured and math.isfinite(c.difference):
        left = f"{left} is {shown.value(c.left)}"
        met = left if c.kind == EXACT and is_number else f"{left}, equal to {right}"
        text = f"{left}, {shown.difference} {right}" if c.difference else met
    else:
        text = shown.compared(left, right) + where
    return text + shown.ending(brief=True)


def at_length(c: Comparison, experiment: Experiment, n_tests: int, scales: Scales | None = None) -> str:
    """One comparison with the mean and spread of both sides, its interval, margin, n and p."""
    shown = _Shown(c, experiment, scales or {})
    shared, names = _names(c, experiment)
    left, right = (
        f"{name} ({shown.value(side)})" if side.measured else name
        for side, name in zip((c.left, c.right), names, strict=True)
    )
    text = shown.compared(left, right)
    if c.kind != EXACT and c.p is not None:
        of = " of the opposite" if c.p_of == "opposite" else ""
        p = f", one-sided p{of} {_p(c.p)}" + (f" (Holm over {n_tests})" if n_tests > 1 else "")
    else:
        p = ""
    return f"{f'{shared}: ' if shared else ''}{text}{shown.ending(brief=False, p=p)}"


class _Shown:
    """The numbers of one comparison in words, those of one unit in the unit of their table."""

    def __init__(self, c: Comparison, experiment: Experiment, scales: Scales) -> None:
        self.c, self.experiment, self.scales = c, experiment, scales
        self.unit, self.factor = self._unit()
        self.decimals = numbers.decimals((c.interval[1] - c.interval[0]) / 2 * self.factor) if c.interval else None

    def _unit(self) -> tuple[str, float]:
        """The table's unit of the difference, and the factor; without a table that of the difference's own size."""
        forms = {self.experiment.cell_of(*side.place) for side in (self.c.left, self.c.right) if side.place}
        known = [self.scales[form] for form in forms if form in self.scales and form.unit == self.c.unit]
        known = known or [scale for form, scale in self.scales.items() if form.unit == self.c.unit]
        units = {(scale.form.unit, scale.factor) for scale in known}
        return units.pop() if len(units) == 1 else time_unit(self.c.unit, abs(self.c.difference))

    @property
    def difference(self) -> str:
        """`15.0 points below`."""
        amount = numbers.with_decimals(abs(self.c.difference) * self.factor, self.decimals)
        return f"{amount}{_unit(self.unit, amount)} {'below' if self.c.difference < 0 else 'above'}"

    def compared(self, left: str, right: str) -> str:
        """Both sides, and how far they lie apart."""
        if not math.isfinite(self.c.difference):
            return f"{left} against {right}"
        return f"{left} is {self.difference} {right}" if self.c.difference else f"{left} is equal to {right}"

    def constant(self, words: str) -> str:
        """A number of the claim, with the unit of what is compared with it."""
        if self.factor != 1.0:
            words = f"{self.c.right.mean * self.factor:,.6g}"
        return words + (f" {self.unit}" if self.unit not in ("", "x") else "")

    def value(self, side: Side) -> str:
        """A side's mean and spread in the format of its cell, a printed value as that of the cell beside it."""
        if math.isinf(side.mean):
            return "never" if side.reached == 0 else f"in {side.reached} of {count(self.c.n, 'seed')}"
        place = (side if side.printed is None else self.c.left).place
        if not place:
            text = numbers.four_digits(side.mean * self.factor)
            text += f" ± {numbers.two_digits(side.std * self.factor)}" if side.std is not None else ""
            return text + (f" {self.unit}" if self.factor != 1.0 else "")
        form = self.experiment.cell_of(*place)
        scaled = self.scales.get(form) or scale(form, [side.mean])
        if side.printed is None:
            text = scaled.written(side.mean, side.std)
        else:
            text = scaled.published(side.printed, "verified")
        return text + (f" {scaled.form.unit}" if scaled.factor != 1.0 else "")

    def ending(self, *, brief: bool, p: str = "") -> str:
        """Interval, margin, seeds, and what would decide it."""
        c, parts = self.c, []
        if c.interval and c.difference and math.isfinite(c.difference):
            low, high = (-c.interval[1], -c.interval[0]) if c.difference < 0 else c.interval
            ends = [numbers.with_decimals(end * self.factor, self.decimals) for end in (low, high)]
            parts.append(f"{100 * TESTED:.0f} % interval {ends[0]} to {ends[1]}")
        if c.kind == AS_GOOD_AS and c.margin is not None:
            margin = f"{c.margin * self.factor:g}"
            parts.append(f"margin {margin}{_unit(self.unit, margin)}")
        parts.append(count(c.n, "seed"))
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
    ranged = ", ".join(count(n, name) for name, n in ranges.items())
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


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"

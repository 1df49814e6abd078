"""One comparison of a claim under one choice of its free names: its two sides, seed paired with seed, and its test.

With D = left - right, one value a seed (what a seed does to both sides alike is no spread), the kind of the claim says
what is tested:

    better       one-sided t test that D is on the claimed side of 0 (a sign test, where one side was never reached)
    at least     the same test against a constant, a published value or a gate
    as good as   with <= or >=: one-sided, that D is not on the wrong side by the margin or more;
                 with ==: two one-sided tests, that D lies within the margin
    exact        no test: the comparison is met by every seed, or it is not; one that every seed meets by another
                 difference is not exact, and undecided

A comparison is contradicted where the test of its opposite rejects: better, where the other side is better; as good as,
where D is beyond the margin.

Beside each stands the 90 % interval of D, whose ends are what one-sided tests at 5 % look at: what holds has it on the
claimed side of the bound, what is contradicted on the other.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from efftx.study.claim_language import COMPARISONS, EXACT, DividedByZeroError, Name, evaluate, lookup
from efftx.study.experiment import Claim, Experiment
from efftx.study.significance import (
    LEVEL,
    MIN_SEEDS,
    TESTED,
    Sample,
    interval,
    rounding,
    seeds_to_decide,
    spread,
    upper_tail,
)

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"
NOT_TESTED, NOT_RUN = "not tested here", "not run"

Cells = Mapping[tuple[str, str], Mapping[int, float]]
"""(row, column) -> seed -> value; infinite where a level was never reached."""


class NotJudgedError(Exception):
    """A binding that has no comparison to judge: `verdict` is NOT_RUN or NOT_TESTED."""

    def __init__(self, verdict: str, why: str) -> None:
        super().__init__(why)
        self.verdict, self.why = verdict, why


@dataclass(frozen=True)
class Side:
    """One side: its expression under the binding, `place` where it is one cell, and its mean and spread over seeds.

    `printed` is the paper's value where the side is that alone; in so many seeds what it asks for was `reached`.
    """

    words: str
    place: tuple[str, str] | None
    measured: bool
    mean: float
    std: float | None
    printed: float | None = None
    reached: int = 0


@dataclass
class Comparison:
    """What the seeds say of one comparison.

    `p` is Holm's, one-sided: of the claim, or of its opposite where that is what the seeds show (`p_of`).

    `difference` is left - right; `interval` its 90 % interval, None below two seeds and for what is exact or infinite.
    `seeds` would decide an undecided one at 80 % power; None where that is out of reach or nothing varies.
    `resolution` is the rounding error of the differences: a smaller spread is none.
    """

    left: Side
    symbol: str
    right: Side
    kind: str
    margin: float | None
    unit: str
    binding: dict[str, str]
    differences: Sample
    n: int
    resolution: float = 0.0
    p_for: float | None = None
    p_against: float | None = None
    outcome: str = UNDECIDED
    p: float | None = None
    seeds: int | None = None

    @property
    def p_of(self) -> str | None:
        """What `p` is the probability for: the `claim`, or its `opposite` where the claim is contradicted."""
        return None if self.p is None else "opposite" if self.outcome == CONTRADICTED else "claim"

    @property
    def difference(self) -> float:
        """The mean of left - right; NaN where one side was not reached by some seeds and the other not by others."""
        with np.errstate(invalid="ignore"):
            return float(np.mean(self.differences))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 90 % interval of the difference."""
        if self.kind == EXACT or self.differences.size < 2 or not np.all(np.isfinite(self.differences)):
            return None
        return interval(self.differences, TESTED)

    def test(self) -> None:
        """Fill in the two one-sided p; of what is exact the outcome. Too few seeds leave it undecided."""
        if self.kind == EXACT:
            if self.symbol == "==":
                self.outcome = HOLDS if np.all(np.abs(self.differences) <= self.resolution) else CONTRADICTED
                return
            met = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}[self.symbol]
            if not np.all(met(self.differences, 0.0)):
                self.outcome = CONTRADICTED
            elif self.n < 2 or not self._varies():
                self.outcome = HOLDS
            return
        if self.n < MIN_SEEDS:
            return
        sample, margin = self.differences, self.margin or 0.0
        if np.all(np.isinf(sample)) and np.ptp(np.sign(sample)) == 0.0:
            self._test_signs(above=bool(sample[0] > 0))
            return
        if not np.all(np.isfinite(sample)):
            return
        if self.symbol == "==":
            self.p_for = max(self._tail(sample, -margin), self._tail(-sample, -margin))
            self.p_against = min(1.0, 2.0 * min(self._tail(sample, margin), self._tail(-sample, margin)))
            return
        favoured = sample if self.symbol in (">", ">=") else -sample
        self.p_for, self.p_against = self._tail(favoured, -margin), self._tail(-favoured, margin)
        if self.symbol in ("<=", ">=") and self.margin is None and self.p_for == 0.5 and not self._varies():
            self.p_for = 0.0  # equal in every seed, which is all that was claimed

    def _test_signs(self, *, above: bool) -> None:
        """The sign test of differences that all are infinite, on one side: a level that was never reached there.

        What was never reached is beyond every margin.
        """
        one_sided = 0.5**self.n
        if self.symbol == "==":
            self.p_for, self.p_against = 1.0, min(1.0, 2.0 * one_sided)
        elif above == (self.symbol in (">", ">=")):
            self.p_for, self.p_against = one_sided, 1.0
        else:
            self.p_for, self.p_against = 1.0, one_sided

    def _tail(self, sample: Sample, bound: float) -> float:
        return upper_tail(sample, bound, self.resolution)

    def _varies(self) -> bool:
        return bool(np.all(np.isfinite(self.differences))) and spread(self.differences) > self.resolution

    def decide(self, p_for: float, p_against: float, n_tests: int) -> None:
        """The outcome from the two adjusted p; of an undecided one also the seeds that would decide it."""
        if p_for <= LEVEL:
            self.outcome, self.p = HOLDS, p_for
        elif p_against <= LEVEL:
            self.outcome, self.p = CONTRADICTED, p_against
        else:
            self.outcome, self.p = UNDECIDED, p_for
            self.seeds = self.seeds_needed(LEVEL / n_tests)

    def seeds_needed(self, level: float) -> int | None:
        """As many as find, at 80 % power, the mean that these seeds gave with the spread that they gave."""
        if not self._varies():
            return None
        std = spread(self.differences)
        margin, mean = self.margin or 0.0, self.difference
        if self.symbol == "==" and abs(mean) < margin:
            return seeds_to_decide((margin - mean) / std, (margin + mean) / std, level=level)
        if self.symbol == "==":
            return seeds_to_decide((abs(mean) - margin) / std, level=level / 2)
        favoured = mean if self.symbol in (">", ">=") else -mean
        return seeds_to_decide(abs(favoured + margin) / std, level=level)


@dataclass
class Evaluator:
    """Reads the two sides of comparisons from the cells of one size, under one binding of the free names."""

    experiment: Experiment
    claim: Claim
    binding: dict[str, str]
    cells: Cells = field(default_factory=dict)
    gates: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Comparison:
        """The comparison, tested; NotJudgedError where its cells share no seed, or neither side was ever reached."""
        seeds = self._seeds(left, right)
        if not seeds and any(table == "cell" for node in (left, right) for table, _ in lookups(node)):
            raise NotJudgedError(NOT_RUN, f"no seed in common of {ast.unparse(left)} and {ast.unparse(right)}")
        a, b = self._values(left, seeds), self._values(right, seeds)
        n = len(seeds) if seeds else 1
        with np.errstate(invalid="ignore"):  # infinity less infinity: neither was reached
            differences = np.broadcast_to(a, (n,)) - np.broadcast_to(b, (n,))
        if np.any(np.isnan(differences)):
            why = f"neither side of {ast.unparse(left)} and {ast.unparse(right)} was reached"
            raise NotJudgedError(NOT_TESTED, why)
        comparison = Comparison(
            left=self._side(left, a),
            symbol=COMPARISONS[type(op)],
            right=self._side(right, b),
            kind=self.claim.kind,
            margin=self.claim.margin,
            unit=self._unit(left, right),
            binding={name: self.binding[name] for name in _free_names(left, right)},
            differences=differences,
            n=len(seeds),
            resolution=rounding(a, b),
        )
        comparison.test()
        return comparison

    def place(self, index: tuple[Name | str, ...]) -> tuple[str, str]:
        """Row and column of a lookup under the binding; "" for a column that is not named."""
        words = [self.binding[i.name] if isinstance(i, Name) else i for i in index]
        return words[0], words[1] if len(words) > 1 else ""

    def _seeds(self, *nodes: ast.expr) -> list[int]:
        sets = [set(self.cells[self.place(i)]) for node in nodes for t, i in lookups(node) if t == "cell"]
        return sorted(set.intersection(*sets)) if sets else []

    def _values(self, node: ast.expr, seeds: list[int]) -> Sample:
        try:
            return evaluate(node, lambda subscript: self._looked_up(subscript, seeds))
        except DividedByZeroError as error:
            zero = ast.unparse(error.node.right)
            raise NotJudgedError(NOT_TESTED, f"{zero} is 0, so that {error} is nothing") from error

    def _looked_up(self, node: ast.Subscript, seeds: list[int]) -> Sample:
        table, index = lookup(node)
        row, column = self.place(index)
        if table == "gate":
            return np.array([self.gates[row, column]])
        if table == "published":
            value = self.experiment.published.of(row, column) if self.experiment.published else None
            assert value is not None, "bindings without a published value are not judged"
            return np.array([value])
        return np.array([self.cells[row, column][seed] for seed in seeds])

    def _side(self, node: ast.expr, values: Sample) -> Side:
        is_cell = isinstance(node, ast.Subscript) and lookup(node)[0] == "cell"
        place = self.place(lookup(node)[1]) if is_cell and isinstance(node, ast.Subscript) else None
        std = spread(values) if values.size > 1 and np.all(np.isfinite(values)) else None
        measured = any(table == "cell" for table, _ in lookups(node))
        reached = int(np.sum(np.isfinite(values)))
        with np.errstate(invalid="ignore"):  # infinity less infinity
            mean = float(np.mean(values))
        return Side(self._words(node), place, measured, mean, std, self._printed(node), reached)

    def _printed(self, node: ast.expr) -> float | None:
        if not isinstance(node, ast.Subscript) or lookup(node)[0] != "published" or not self.experiment.published:
            return None
        return self.experiment.published.of(*self.place(lookup(node)[1]))

    def _words(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=int() as count):
                return f"{count:,}"
            case ast.Constant(value=float() as number):
                return f"{number:g}"
            case ast.UnaryOp(op=op, operand=operand):
                return f"{'-' if isinstance(op, ast.USub) else ''}{self._words(operand)}"
            case ast.BinOp(left=left, op=op, right=right):
                sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "×", ast.Div: "/"}[type(op)]
                first = _bracketed(self._words(left), _binds(left) < _binds(node))
                tight = _binds(node) + isinstance(op, ast.Sub | ast.Div)  # a - (b + c), a / (b × c)
                return f"{first} {sign} {_bracketed(self._words(right), _binds(right) < tight)}"
            case ast.Call(func=ast.Name(id=name), args=args):
                return self._call_words(name, args)
            case ast.Subscript():
                table, index = lookup(node)
                words = self.experiment.cell_label(*self.place(index))
                return f"the paper's {words}" if table == "published" else words
        raise AssertionError("parse admits no other node")

    def _call_words(self, name: str, args: Sequence[ast.expr]) -> str:
        """`the mean of layer 1 and layer 2 (same row)`, the column said once where all are cells of it."""
        match name, args:
            case "abs", [ast.BinOp(left=left, op=ast.Sub(), right=right)]:
                return f"the distance of {self._words(left)} from {self._words(right)}"
            case "abs", _:
                return f"the size of {self._words(args[0])}"
        places = [lookup(arg) for arg in args if isinstance(arg, ast.Subscript)]
        cells = [self.place(index) for table, index in places if table == "cell"]
        shared = len(cells) == len(args) and len({column for _, column in cells}) == 1 and cells[0][1]
        each = [self.experiment.label(row) for row, _ in cells] if shared else [self._words(arg) for arg in args]
        of = {"min": "the smallest", "max": "the largest"}.get(name, "the mean")
        all_of_them = f"{', '.join(each[:-1])} and {each[-1]}" if each[1:] else each[0]
        return f"{of} of {all_of_them}" + (f" ({shared})" if shared else "")

    def _unit(self, *nodes: ast.expr) -> str:
        """The unit of the difference: the cells', where they share one and none is multiplied or divided by another."""
        places = [self.place(i) for node in nodes for t, i in lookups(node) if t == "cell"]
        units = {self.experiment.cell_of(*place).unit for place in places}
        products = [n for node in nodes for n in ast.walk(node) if isinstance(n, ast.BinOp)]
        mixed = any(
            isinstance(n.op, ast.Div | ast.Mult) and lookups(n.right) and (lookups(n.left) or isinstance(n.op, ast.Div))
            for n in products
        )
        return units.pop() if len(units) == 1 and not mixed else ""


def _binds(node: ast.expr) -> int:
    """How tightly an expression holds together: a sum loosely, a product more, what has one name most."""
    if not isinstance(node, ast.BinOp):
        return 4
    return 1 if isinstance(node.op, ast.Add | ast.Sub) else 2


def _bracketed(words: str, needed: bool) -> str:
    return f"({words})" if needed else words


def lookups(node: ast.expr) -> list[tuple[str, tuple[Name | str, ...]]]:
    """Every table and index that `node` looks into."""
    return [lookup(n) for n in ast.walk(node) if isinstance(n, ast.Subscript)]


def _free_names(*nodes: ast.expr) -> list[str]:
    names = (i.name for node in nodes for _, index in lookups(node) for i in index if isinstance(i, Name))
    return list(dict.fromkeys(names))

"""Claims and their verdicts: what the records say about each sentence of an experiment.

Each side of a comparison is a vector over the seeds that all of its cells have, plus a multiple of `noise`. With
D = left - right, noise is two standard errors of the mean of D, 2 std(D, ddof=1) / sqrt(n): the seeds are paired, so
what a seed does to both sides alike is no noise. A comparison that does not name `noise` is not decided where the mean
of D lies within it.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from efftx.errors import UserError
from efftx.reproduce.cells import values_of
from efftx.reproduce.claim_language import COMPARISONS, Name, Parsed, admits, lookup, parse, parse_where
from efftx.reproduce.experiment import Claim, Experiment
from efftx.reproduce.records import Record

HOLDS, FAILS, WITHIN_NOISE = "holds", "does not hold", "within noise"
TOO_FEW, NEITHER, NOT_RUN = "too few seeds", "neither learned", "not run"
_STRENGTH = {FAILS: 0, WITHIN_NOISE: 1, HOLDS: 2}
_OPPOSITE = {HOLDS: FAILS, FAILS: HOLDS, WITHIN_NOISE: WITHIN_NOISE}


@dataclass
class Verdict:
    """What became of one claim; `details` has one entry a comparison and binding, with the numbers that decided it."""

    says: str
    verdict: str
    why: str
    details: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Side:
    """One side of a comparison: value a seed, and how many `noise` are added to it."""

    values: NDArray[np.float64]
    noise: float = 0.0


class _UndecidedError(Exception):
    """A verdict on its way up that no comparison has given."""

    def __init__(self, verdict: str, why: str) -> None:
        super().__init__(why)
        self.verdict, self.why = verdict, why


def judge(experiment: Experiment, records: Sequence[Record], size: str) -> list[Verdict]:
    """The verdict on every claim of `experiment` from its records at `size`.

    A quantified claim holds where it holds for every binding. One missing cell makes it *not run*. A binding of which
    no cell rose above the baseline by more than noise decides nothing; with no other binding it is *neither learned*.
    Raises UserError where a claim leaves the language.
    """
    return [_judge_claim(experiment, records, size, claim) for claim in experiment.claims]


def _judge_claim(experiment: Experiment, records: Sequence[Record], size: str, claim: Claim) -> Verdict:
    parsed = parse(claim.holds_if)
    bindings = _bindings(experiment, size, claim, parsed)
    details: list[dict[str, Any]] = []
    outcomes: list[tuple[str, str]] = []
    for binding in bindings:
        judgement = _Judgement(experiment, records, size, claim, parsed, binding)
        try:
            verdict, why = judgement.decide(), ""
        except _UndecidedError as undecided:
            verdict, why = undecided.verdict, undecided.why
        outcomes.append((verdict, why))
        details += judgement.details
    if not bindings:
        return Verdict(claim.says, NOT_RUN, f"nothing of it is defined at size {size}")
    for verdict in (NOT_RUN, TOO_FEW):
        whys = list(dict.fromkeys(why for v, why in outcomes if v == verdict))
        if whys:
            more = f" (and {len(whys) - 1} more)" if len(whys) > 1 else ""
            return Verdict(claim.says, verdict, whys[0] + more, details)
    decided = [v for v, _ in outcomes if v in _STRENGTH]
    if not decided:
        return Verdict(claim.says, NEITHER, outcomes[0][1], details)
    verdict = min(decided, key=_STRENGTH.__getitem__)
    return Verdict(claim.says, verdict, _summary(verdict, details, len(outcomes) - len(decided)), details)


def _bindings(experiment: Experiment, size: str, claim: Claim, parsed: Parsed) -> list[dict[str, str]]:
    """Every admitted choice of the free names for which all cells and published values asked for are defined."""
    where = parse_where(claim.where, parsed.free)
    axes = {"row": list(experiment.rows_at(size)), "column": experiment.columns_at(size)}
    names = list(parsed.free)
    found = []
    for choice in itertools.product(*(axes[parsed.free[name]] for name in names)):
        binding = dict(zip(names, choice, strict=True))
        if admits(where, binding) and all(_defined(experiment, size, t, i, binding) for t, i in parsed.lookups):
            found.append(binding)
    return found


def _defined(
    experiment: Experiment, size: str, table: str, index: tuple[Name | str, ...], binding: dict[str, str]
) -> bool:
    words = [binding[i.name] if isinstance(i, Name) else i for i in index]
    if table == "baseline":
        return True
    row, column = words[0], words[1] if len(words) > 1 else ""
    if table == "published":
        return experiment.published is not None and experiment.published.of(row, column) is not None
    return row in experiment.rows_at(size) and column in experiment.columns_of(row, size)


class _Judgement:
    """One claim under one binding of its free names."""

    def __init__(
        self,
        experiment: Experiment,
        records: Sequence[Record],
        size: str,
        claim: Claim,
        parsed: Parsed,
        binding: dict[str, str],
    ) -> None:
        self.experiment, self.claim, self.parsed, self.binding = experiment, claim, parsed, binding
        self.details: list[dict[str, Any]] = []
        self._cells: dict[tuple[str, str], dict[int, float]] = {}
        for table, index in parsed.lookups:
            if table != "cell":
                continue
            row, column = self._place(index)
            values = values_of(experiment, records, size, row, column)
            # A level never reached is later than every step: infinity, so that comparisons still mean something.
            self._cells[row, column] = {s: math.inf if v is None else v for s, v in values.items()}

    def decide(self) -> str:
        """`holds`, `does not hold` or `within noise`; raises _UndecidedError for the rest."""
        for (row, column), values in self._cells.items():
            if not values:
                raise _UndecidedError(NOT_RUN, f"no record of {_cell_name(row, column)}")
        n = len(self._seeds(self._cells))
        if self._cells and n < self.claim.min_seeds:
            raise _UndecidedError(TOO_FEW, f"{n} of the {self.claim.min_seeds} seeds that all its cells need")
        self._ask_whether_anything_was_learned()
        return self._condition(self.parsed.tree)

    def _ask_whether_anything_was_learned(self) -> None:
        better = self.experiment.cell.better
        asks_for_it = any(table == "baseline" for table, _ in self.parsed.lookups)
        if not self.experiment.baseline or better == "none" or asks_for_it or not self._cells:
            return
        label, trivial = next(iter(self.experiment.baseline.items()))
        sign = 1.0 if better == "higher" else -1.0
        shown = []
        for (row, column), values in self._cells.items():
            if self.experiment.cell_of(row, column).metric != self.experiment.cell.metric:
                return
            above = sign * (np.array(list(values.values())) - trivial)
            if float(above.mean()) > _noise(above):
                return
            shown.append(f"{_cell_name(row, column)} {np.mean(list(values.values())):.4g}")
        raise _UndecidedError(NEITHER, f"nothing beyond {label} ({trivial:.4g}): {', '.join(shown)}")

    def _condition(self, node: ast.expr) -> str:
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                return min((self._condition(v) for v in values), key=_STRENGTH.__getitem__)
            case ast.BoolOp(values=values):
                return max((self._condition(v) for v in values), key=_STRENGTH.__getitem__)
            case ast.UnaryOp(operand=operand):
                return _OPPOSITE[self._condition(operand)]
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                pairs = zip(pairwise([left, *comparators]), ops, strict=True)
                return min((self._compare(a, op, b) for (a, b), op in pairs), key=_STRENGTH.__getitem__)
        raise AssertionError("parse admits no other node")

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> str:
        places = [self._place(i) for node in (left, right) for t, i in _lookups(node) if t == "cell"]
        seeds = self._seeds(places)
        a, b = self._side(left, seeds), self._side(right, seeds)
        n = len(seeds) if seeds else 1
        with np.errstate(invalid="ignore"):  # infinity less infinity: neither was reached, told below
            difference = np.broadcast_to(a.values, (n,)) - np.broadcast_to(b.values, (n,))
        mean, noise, allowance = float(np.mean(difference)), _noise(difference), a.noise - b.noise
        if math.isnan(mean):
            raise _UndecidedError(NEITHER, f"neither side of {ast.unparse(left)} and {ast.unparse(right)} was reached")
        margin = mean + allowance * noise
        symbol = COMPARISONS[type(op)]
        met = {"<": margin < 0, "<=": margin <= 0, ">": margin > 0, ">=": margin >= 0}[symbol]
        verdict = HOLDS if met else FAILS
        level = mean == 0.0 and noise == 0.0 and met
        if allowance == 0 and places and abs(mean) <= noise and not level:
            verdict = WITHIN_NOISE
        self.details.append(
            {
                "comparison": f"{ast.unparse(left)} {symbol} {ast.unparse(right)}",
                "binding": dict(self.binding),
                "left": _number(np.mean(a.values)),
                "right": _number(np.mean(b.values)),
                "difference": _number(mean),
                "noise": _number(noise),
                "slack": _number(margin if symbol in (">", ">=") else -margin),
                "n": len(seeds),
                "verdict": verdict,
            }
        )
        return verdict

    def _side(self, node: ast.expr, seeds: list[int]) -> _Side:
        match node:
            case ast.Constant(value=int() | float() as number):
                return _Side(np.array([float(number)]))
            case ast.Name():
                return _Side(np.zeros(1), 1.0)
            case ast.UnaryOp(op=op, operand=operand):
                side = self._side(operand, seeds)
                return _Side(-side.values, -side.noise) if isinstance(op, ast.USub) else side
            case ast.BinOp():
                return self._arithmetic(self._side(node.left, seeds), node.op, self._side(node.right, seeds), node)
            case ast.Call(func=ast.Name(id=name), args=args):
                sides = [self._side(arg, seeds) for arg in args]
                if any(side.noise for side in sides):
                    raise self._bad(f"{name} of noise")
                reduced = {"abs": lambda v: np.abs(v[0]), "min": _least, "max": _most}[name]([s.values for s in sides])
                return _Side(reduced)
            case ast.Subscript():
                return self._looked_up(node, seeds)
        raise AssertionError("parse admits no other node")

    def _arithmetic(self, a: _Side, op: ast.operator, b: _Side, node: ast.BinOp) -> _Side:
        if isinstance(op, ast.Add):
            return _Side(a.values + b.values, a.noise + b.noise)
        if isinstance(op, ast.Sub):
            return _Side(a.values - b.values, a.noise - b.noise)
        if (a.noise and not _is_number(node.right)) or (b.noise and not _is_number(node.left)):
            raise self._bad("noise times or over something that is not a number")
        if isinstance(op, ast.Mult):
            scale_a, scale_b = float(b.values[0]), float(a.values[0])
            return _Side(a.values * b.values, a.noise * scale_a + b.noise * scale_b)
        if b.noise:
            raise self._bad("division by noise")
        if np.any(b.values == 0):
            raise _UndecidedError(NOT_RUN, f"{ast.unparse(node)} divides by zero")
        return _Side(a.values / b.values, a.noise / float(b.values[0]) if a.noise else 0.0)

    def _looked_up(self, node: ast.Subscript, seeds: list[int]) -> _Side:
        table, index = lookup(node)
        if table == "baseline":
            return _Side(np.array([self.experiment.baseline[str(index[0])]]))
        row, column = self._place(index)
        if table == "published":
            value = self.experiment.published.of(row, column) if self.experiment.published else None
            assert value is not None, "bindings without a published value are not judged"
            return _Side(np.array([value]))
        return _Side(np.array([self._cells[row, column][seed] for seed in seeds]))

    def _place(self, index: tuple[Name | str, ...]) -> tuple[str, str]:
        words = [self.binding[i.name] if isinstance(i, Name) else i for i in index]
        return words[0], words[1] if len(words) > 1 else ""

    def _seeds(self, places: Any) -> list[int]:
        sets = [set(self._cells[place]) for place in places]
        return sorted(set.intersection(*sets)) if sets else []

    def _bad(self, what: str) -> UserError:
        return UserError("bad_claim", f"the claim `{self.claim.holds_if}` cannot be judged: {what}")


def _noise(difference: NDArray[np.float64]) -> float:
    """Two standard errors of the mean; 0 below two seeds, which `min_seeds` admits only where nothing can vary."""
    if difference.size < 2 or not np.all(np.isfinite(difference)):
        return 0.0
    return float(2.0 * np.std(difference, ddof=1) / math.sqrt(difference.size))


def _lookups(node: ast.expr) -> list[tuple[str, tuple[Name | str, ...]]]:
    return [lookup(n) for n in ast.walk(node) if isinstance(n, ast.Subscript)]


def _is_number(node: ast.expr) -> bool:
    return not any(isinstance(n, ast.Subscript | ast.Name) for n in ast.walk(node))


def _least(values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.min(np.stack(np.broadcast_arrays(*values)), axis=0)


def _most(values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.max(np.stack(np.broadcast_arrays(*values)), axis=0)


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _cell_name(row: str, column: str) -> str:
    return f"{row} / {column}" if column else row


def _summary(verdict: str, details: list[dict[str, Any]], unlearned: int) -> str:
    """The comparison with the least slack among those that gave this verdict, and how many those are."""
    same = [d for d in details if d["verdict"] == verdict] or details
    closest = min(same, key=lambda d: -math.inf if d["slack"] is None else d["slack"])
    shown = {key: "never" if closest[key] is None else f"{closest[key]:.4g}" for key in ("left", "right", "noise")}
    named = ", ".join(f"{k} = {v}" for k, v in closest["binding"].items())
    text = f"{len(same)} of {len(details)} comparisons; " if len(details) > 1 else ""
    text += f"{'closest: ' if len(same) > 1 else ''}{closest['comparison']}{f' at {named}' if named else ''}: "
    text += f"{shown['left']} against {shown['right']}, noise {shown['noise']}, n = {closest['n']}"
    return text + (f"; {unlearned} more where neither learned" if unlearned else "")

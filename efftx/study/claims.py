"""Claims and their verdicts: what the records say about each sentence of an experiment.

Every comparison of a claim is tested over the seeds (`comparisons`), Holm's correction is taken over all of them, once
for the claim and once for its opposite, and the outcomes go through `and`, `or` and `not` to one verdict.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from efftx.study.aggregation import Results
from efftx.study.claim_language import EXACT, Name, Parsed, compared, parse, parse_where
from efftx.study.comparisons import (
    CONTRADICTED,
    HOLDS,
    NOT_RUN,
    NOT_TESTED,
    UNDECIDED,
    Comparison,
    Evaluator,
    NotJudgedError,
    lookups,
)
from efftx.study.experiment import Claim, Experiment
from efftx.study.gating import MissingRecordError, gate_value, not_passed
from efftx.study.records import Record
from efftx.study.significance import holm

TOLD = 3
"""Of models that do not pass, this many are named."""
_Compared = tuple[tuple[int, int], tuple[tuple[str, str], ...]]
"""A comparison of a claim's tree and the cells that it looks into under a binding."""
_STRENGTH = {CONTRADICTED: 0, UNDECIDED: 1, HOLDS: 2}
_OPPOSITE = {HOLDS: CONTRADICTED, CONTRADICTED: HOLDS, UNDECIDED: UNDECIDED}


@dataclass(frozen=True)
class Verdict:
    """What became of one claim, and the comparisons that decided it.

    `why` says why nothing was decided; where comparisons were judged the report writes them out instead. `untested` is
    the number of bindings that were left out because neither side ever reached its level.
    """

    claim: Claim
    verdict: str
    why: str = ""
    comparisons: tuple[Comparison, ...] = ()
    untested: int = 0

    @property
    def says(self) -> str:
        """The claim's sentence."""
        return self.claim.says


def judge(experiment: Experiment, records: Sequence[Record], size: str) -> list[Verdict]:
    """The verdict on every claim of `experiment` that is judged at `size`, from its records there.

    A quantified claim holds where it holds for every binding. One missing cell makes it *not run*. One model in it, of
    any binding and on either side, that does not pass a gate before it makes it *not tested here*, whatever the numbers
    say: what separates it from the others is that it was not trained, not what it is made of. Exact claims have no
    gates. Fewer than three seeds leave whatever is not exact *undecided*. Raises
    UserError where a claim leaves the language.
    """
    results = Results(experiment, records, size)
    return [_judge_claim(results, claim) for claim in experiment.claims_at(size)]


def _judge_claim(results: Results, claim: Claim) -> Verdict:
    judged, unjudged = _judgements(results, claim)
    if not judged and not any(unjudged.values()):
        return Verdict(claim, NOT_RUN, f"nothing of it is defined at size {results.size}")
    comparisons = _comparisons(judged)
    if whys := list(dict.fromkeys(unjudged[NOT_RUN])):
        more = f" (and {len(whys) - 1} more)" if len(whys) > 1 else ""
        return Verdict(claim, NOT_RUN, whys[0] + more)
    if not judged:
        return Verdict(claim, NOT_TESTED, unjudged[NOT_TESTED][0])
    if claim.kind != EXACT:
        named = [str(index[0]) for table, index in judged[0].parsed.lookups if table == "gate"]
        try:
            failed = not_passed(results, _places(judged), named)
        except MissingRecordError as error:
            return Verdict(claim, NOT_RUN, str(error))
        if failed:
            more = f", and {len(failed) - TOLD} more models" if len(failed) > TOLD else ""
            return Verdict(claim, NOT_TESTED, "; ".join(failed[:TOLD]) + more)
    _decide_together(comparisons)
    verdict = min((judgement.decide() for judgement in judged), key=_STRENGTH.__getitem__)
    return Verdict(claim, verdict, "", comparisons, len(unjudged[NOT_TESTED]))


@dataclass(frozen=True)
class Recorded:
    """The comparisons of a claim of which both sides are recorded, the rows in them, and what is missing, in words."""

    claim: Claim
    comparisons: tuple[Comparison, ...]
    rows: tuple[str, ...]
    missing: str = ""


def recorded(results: Results, claim: Claim) -> Recorded:
    """The comparisons of one claim, none of them decided, whether or not their models pass their gates."""
    judged, unjudged = _judgements(results, claim)
    missing = [*unjudged[NOT_RUN], *unjudged[NOT_TESTED]]
    why = missing[0] if missing and not judged else "" if judged else f"nothing of it is defined at size {results.size}"
    return Recorded(claim, _comparisons(judged), tuple(_places(judged)), why)


def _places(judged: Sequence[_Judgement]) -> dict[str, list[str]]:
    """The columns of each row that a claim looks into."""
    places: dict[str, list[str]] = {}
    for row, column in dict.fromkeys(place for judgement in judged for place in judgement.cells):
        places.setdefault(row, []).append(column)
    return places


def _judgements(results: Results, claim: Claim) -> tuple[list[_Judgement], dict[str, list[str]]]:
    """One judgement a binding, and why others have none: NOT_RUN and NOT_TESTED -> reasons."""
    parsed = parse(claim.holds_if)
    judged: list[_Judgement] = []
    made = dict[_Compared, Comparison]()
    unjudged: dict[str, list[str]] = {NOT_RUN: [], NOT_TESTED: []}
    for binding in _bindings(results.experiment, results.size, claim, parsed):
        try:
            judged.append(_Judgement(results, claim, parsed, binding, made))
        except NotJudgedError as error:
            unjudged[error.verdict].append(error.why)
    return judged, unjudged


def _comparisons(judged: Sequence[_Judgement]) -> tuple[Comparison, ...]:
    """Each once: what names no free name is one comparison, whatever the others stand for."""
    distinct = {id(comparison): comparison for each in judged for comparison in each.comparisons.values()}
    return tuple(distinct.values())


def _decide_together(comparisons: Sequence[Comparison]) -> None:
    """Holm over all that were tested, for the claim and for its opposite."""
    tested = [(c, c.p_for, c.p_against) for c in comparisons if c.p_for is not None and c.p_against is not None]
    adjusted = zip(holm([p for _, p, _ in tested]), holm([p for _, _, p in tested]), strict=True)
    for (comparison, _, _), (p_for, p_against) in zip(tested, adjusted, strict=True):
        comparison.decide(p_for, p_against, len(tested))


def _bindings(experiment: Experiment, size: str, claim: Claim, parsed: Parsed) -> list[dict[str, str]]:
    """Every admitted choice of the free names for which all cells and published values asked for are defined."""
    where = parse_where(claim.where, parsed.free)
    axes = {"row": list(experiment.rows_at(size)), "column": experiment.columns_at(size)}
    names = list(parsed.free)
    bindings = []
    for choice in itertools.product(*(axes[parsed.free[name]] for name in names)):
        binding = dict(zip(names, choice, strict=True))
        if where(binding) and all(_defined(experiment, size, t, i, binding) for t, i in parsed.lookups):
            bindings.append(binding)
    return bindings


def _defined(
    experiment: Experiment, size: str, table: str, index: tuple[Name | str, ...], binding: dict[str, str]
) -> bool:
    words = [binding[i.name] if isinstance(i, Name) else i for i in index]
    if table == "gate":
        return True
    row, column = words[0], words[1] if len(words) > 1 else ""
    if table == "published":
        return experiment.published is not None and experiment.published.of(row, column) is not None
    return row in experiment.rows_at(size) and column in experiment.columns_of(row, size)


class _Judgement:
    """One claim under one binding of its free names; NotJudgedError where there is nothing to compare.

    `made`: the comparisons of the claim's other bindings, to which this one's are added.
    """

    def __init__(
        self,
        results: Results,
        claim: Claim,
        parsed: Parsed,
        binding: dict[str, str],
        made: dict[_Compared, Comparison],
    ) -> None:
        self.parsed = parsed
        evaluator = Evaluator(results.experiment, claim, binding)
        self.cells = cells = dict[tuple[str, str], dict[int, float]]()
        gates: dict[tuple[str, str], float] = {}
        for table, index in parsed.lookups:
            row, column = evaluator.place(index)
            if table == "gate":
                gates[row, column] = _gate(results, row, column)
            if table == "cell":
                values = results.values(row, column)
                # A level never reached is later than every step: infinity, so that comparisons still mean something.
                cells[row, column] = {s: math.inf if v is None else v for s, v in values.items()}
        for (row, column), of_cell in cells.items():
            if not of_cell:
                raise NotJudgedError(NOT_RUN, f"no record of {results.experiment.cell_label(row, column)}")
        evaluator.cells, evaluator.gates = cells, gates
        self.comparisons = dict[tuple[int, int], Comparison]()
        for key, left, op, right in compared(parsed.tree):
            cells_of_it = tuple(evaluator.place(index) for _, index in [*lookups(left), *lookups(right)])
            if (key, cells_of_it) not in made:
                made[key, cells_of_it] = evaluator.compare(left, op, right)
            self.comparisons[key] = made[key, cells_of_it]

    def decide(self) -> str:
        """`holds`, `contradicted` or `undecided`, from the outcomes of the comparisons."""
        return self._condition(self.parsed.tree)

    def _condition(self, node: ast.expr) -> str:
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                return min((self._condition(v) for v in values), key=_STRENGTH.__getitem__)
            case ast.BoolOp(values=values):
                return max((self._condition(v) for v in values), key=_STRENGTH.__getitem__)
            case ast.UnaryOp(operand=operand):
                return _OPPOSITE[self._condition(operand)]
            case ast.Compare(ops=ops):
                outcomes = [self.comparisons[id(node), i].outcome for i in range(len(ops))]
                return min(outcomes, key=_STRENGTH.__getitem__)
        raise AssertionError("parse admits no other node")


def _gate(results: Results, name: str, column: str) -> float:
    column_spec = results.experiment.columns.get(column)
    metric = (column_spec.cell if column_spec and column_spec.cell else results.experiment.cell).metric
    try:
        value = gate_value(results, name, metric)
    except MissingRecordError as error:
        raise NotJudgedError(NOT_RUN, str(error)) from error
    if value is None:
        raise NotJudgedError(NOT_RUN, f"the gate '{name}' says nothing of {metric}")
    return value

"""The small language of claims: read with `ast`, checked node by node, never evaluated as Python.

    comparison      expression (< | <= | > | >= | ==) expression, chained as in a <= b <= c
    condition       comparison, `and`, `or`, `not`
    expression      number, + - * /, abs(x), min(x, ...), max(x, ...), mean(x, ...),
                    cell[row, column], cell[row], published[row, column], gate["name", column]
    row, column     text in quotes, or a free name, which is quantified over all rows or columns
    restriction     (`where`) free names against text: ==, !=, in [...], not in [...], `and`, `or`, `not`

The claim's `kind` says how its comparisons are tested over the seeds; nothing is added for spread by hand.

    better       measured against measured, with < or > (<=, >=)
    as good as   with <= or >=: no worse than by `margin`; with ==: within `margin` on both sides
    at least     measured against a constant, a published value or a gate, above or below it
    exact        what no seed can move: counts, closed forms, exponents of counts; with == equal in every seed
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from efftx.errors import UserError, nearest
from efftx.study.significance import Sample

FUNCTIONS: Mapping[str, Callable[[Sample], Sample]] = {
    "abs": lambda of: np.abs(of[0]),
    "min": lambda of: of.min(axis=0),
    "max": lambda of: of.max(axis=0),
    "mean": lambda of: of.mean(axis=0),
}
"""Of values one under the other, one row an argument."""
TABLES = ("cell", "published", "gate")
COMPARISONS: dict[type[ast.cmpop], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "=="}
BETTER, AS_GOOD_AS, AT_LEAST, EXACT = "better", "as good as", "at least", "exact"
KINDS = (BETTER, AS_GOOD_AS, AT_LEAST, EXACT)
MAX_LENGTH = 1000
_OPERATORS: dict[type[ast.operator], Callable[[Sample, Sample], Sample]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class DividedByZeroError(Exception):
    """A division by what is 0 in some seed: `node`."""

    def __init__(self, node: ast.BinOp) -> None:
        super().__init__(ast.unparse(node))
        self.node = node


@dataclass(frozen=True)
class Name:
    """A free name, to be bound to each row or each column."""

    name: str


Index = Name | str
Restriction = Callable[[Mapping[str, str]], bool]
"""Whether a binding of the free names is one that the claim is about."""


@dataclass(frozen=True)
class Parsed:
    """A checked condition: its tree, the tables it looks into, and the axis of each free name (`row`, `column`)."""

    tree: ast.expr
    lookups: list[tuple[str, tuple[Index, ...]]]
    free: dict[str, str] = field(default_factory=dict)


def parse(text: str) -> Parsed:
    """The condition in `text`; UserError where it leaves the language."""
    tree = _tree(text)
    lookups: list[tuple[str, tuple[Index, ...]]] = []
    _check_condition(tree, text, lookups)
    free: dict[str, str] = {}
    for _, index in lookups:
        for position, item in enumerate(index):
            if not isinstance(item, Name):
                continue
            axis = ("row", "column")[position]
            if free.setdefault(item.name, axis) != axis:
                raise _refuse(text, f"'{item.name}' stands for a row in one place and for a column in another")
    return Parsed(tree, lookups, free)


def check_kind(parsed: Parsed, text: str, kind: str, margin: float | None) -> None:
    """UserError where a claim's kind is unknown, or does not go with its comparisons or its margin."""
    if kind not in KINDS:
        raise UserError("bad_claim", f"the claim `{text.strip()}`: there is no kind '{kind}'", nearest(kind, KINDS))
    if (kind == AS_GOOD_AS) != (margin is not None):
        raise _refuse(text, f"a margin, in the metric's unit, belongs to kind '{AS_GOOD_AS}' and only there")
    if margin is not None and not 0 < margin < math.inf:
        raise _refuse(text, f"the margin {margin:g} is not above 0")
    for _, left, op, right in compared(parsed.tree):
        _check_sides(left, COMPARISONS[type(op)], right, text, kind)


def _check_sides(left: ast.expr, symbol: str, right: ast.expr, text: str, kind: str) -> None:
    asked = f"{ast.unparse(left)} {symbol} {ast.unparse(right)}"
    n_measured = sum(any(isinstance(n, ast.Name) and n.id == "cell" for n in ast.walk(side)) for side in (left, right))
    if symbol == "==" and kind not in (AS_GOOD_AS, EXACT):
        raise _refuse(text, f"== asks for kind '{AS_GOOD_AS}' and its margin, or for kind '{EXACT}'")
    if kind == AS_GOOD_AS and (slack := _slack(left) or _slack(right)):
        raise _refuse(text, f"'{slack}' and the margin allow for the same difference: only one of them is meant")
    if kind == AS_GOOD_AS and symbol in "<>":
        raise _refuse(text, f"kind '{AS_GOOD_AS}' compares with <=, >= or ==")
    if n_measured == 0:
        raise _refuse(text, f"nothing of `{asked}` is measured")
    if kind == BETTER and n_measured != 2:
        raise _refuse(text, f"one side of `{asked}` is not measured: that is kind '{AT_LEAST}'")
    if kind == AT_LEAST and n_measured != 1:
        raise _refuse(text, f"both sides of `{asked}` are measured: that is kind '{BETTER}'")


def _slack(side: ast.expr) -> str:
    """A constant that a side adds to or takes from what it compares, as it is written; empty where there is none."""
    match side:
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
            for term in (left, right):
                if not any(isinstance(node, ast.Subscript) for node in ast.walk(term)):
                    return f"{'-' if isinstance(op, ast.Sub) and term is right else '+'} {ast.unparse(term)}"
            return _slack(left) or _slack(right)
        case ast.UnaryOp(operand=operand):
            return _slack(operand)
    return ""


def parse_where(text: str, free: Mapping[str, str]) -> Restriction:
    """The restriction in `text` over the free names of a claim; it admits everything where the text is empty."""
    return _restriction(_tree(text), text, free) if text.strip() else lambda binding: True


def lookup(node: ast.Subscript) -> tuple[str, tuple[Index, ...]]:
    """The table and the index of a subscript that `parse` has admitted."""
    assert isinstance(node.value, ast.Name)
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    index: list[Index] = []
    for item in items:
        match item:
            case ast.Constant(value=str(word)):
                index.append(word)
            case ast.Name(id=name):
                index.append(Name(name))
            case _:
                raise TypeError(ast.unparse(item))
    return node.value.id, tuple(index)


def evaluate(node: ast.expr, look_up: Callable[[ast.Subscript], Sample]) -> Sample:
    """The value of an expression that `parse` has admitted, one a seed; DividedByZeroError names the division."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return np.array([float(number)])
        case ast.UnaryOp(op=op, operand=operand):
            values = evaluate(operand, look_up)
            return -values if isinstance(op, ast.USub) else values
        case ast.BinOp(left=left, op=op, right=right):
            a, b = evaluate(left, look_up), evaluate(right, look_up)
            if isinstance(op, ast.Div) and np.any(b == 0):
                raise DividedByZeroError(node)
            return _OPERATORS[type(op)](a, b)
        case ast.Call(func=ast.Name(id=name), args=args):
            return FUNCTIONS[name](np.stack(np.broadcast_arrays(*(evaluate(arg, look_up) for arg in args))))
        case ast.Subscript():
            return look_up(node)
    raise AssertionError("parse admits no other node")


def _not_measured_yet(_: ast.Subscript) -> Sample:
    return np.array([math.nan])


def compared(tree: ast.expr) -> Iterator[tuple[tuple[int, int], ast.expr, ast.cmpop, ast.expr]]:
    """Every comparison of a condition: a key (its node's id, its place in the chain), left side, operator, right."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            pairs = pairwise([node.left, *node.comparators])
            for i, ((left, right), op) in enumerate(zip(pairs, node.ops, strict=True)):
                yield (id(node), i), left, op, right


def _tree(text: str) -> ast.expr:
    if len(text) > MAX_LENGTH:
        raise UserError("bad_claim", f"a claim of {len(text)} characters; at most {MAX_LENGTH} are read")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refuse(text, f"not an expression ({error})") from error


def _check_condition(node: ast.expr, text: str, lookups: list[tuple[str, tuple[Index, ...]]]) -> None:
    match node:
        case ast.BoolOp(values=values):
            for value in values:
                _check_condition(value, text, lookups)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            _check_condition(operand, text, lookups)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for op in ops:
                if type(op) not in COMPARISONS:
                    raise _refuse(text, "only <, <=, >, >= and == compare measurements")
            for side in [left, *comparators]:
                _check_expression(side, text, lookups)
        case _:
            raise _refuse(text, f"'{ast.unparse(node)}' is not a comparison")


def _check_expression(node: ast.expr, text: str, lookups: list[tuple[str, tuple[Index, ...]]]) -> None:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            pass
        case ast.Name(id="noise"):
            raise _refuse(text, "there is no noise to write: the claim's kind says how the seeds' spread is judged")
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            _check_expression(operand, text, lookups)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), left=left, right=right):
            _check_expression(left, text, lookups)
            _check_expression(right, text, lookups)
            if isinstance(node.op, ast.Div) and np.all(evaluate(right, _not_measured_yet) == 0.0):
                raise _refuse(text, f"'{ast.unparse(node)}' divides by zero")
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS and args:
            if name == "abs" and len(args) != 1:
                raise _refuse(text, "abs takes one value")
            for arg in args:
                _check_expression(arg, text, lookups)
        case ast.Subscript(value=ast.Name(id=table)) if table in TABLES:
            lookups.append(_checked_lookup(node, text))
        case _:
            raise _refuse(text, f"'{ast.unparse(node)}' is not in the language of claims")


def _checked_lookup(node: ast.Subscript, text: str) -> tuple[str, tuple[Index, ...]]:
    try:
        table, index = lookup(node)
    except TypeError as error:
        raise _refuse(text, f"'{error}' is neither a name nor text in quotes") from error
    if len(index) not in (1, 2):
        raise _refuse(text, f"{table} takes [{'name' if table == 'gate' else 'row'}, column]")
    reserved = [i.name for i in index if isinstance(i, Name) and i.name in (*FUNCTIONS, *TABLES)]
    if reserved or (table == "gate" and isinstance(index[0], Name)):
        raise _refuse(text, f"'{reserved[0] if reserved else ast.unparse(node.slice)}' cannot stand in an index")
    return table, index


def _restriction(node: ast.expr, text: str, free: Mapping[str, str]) -> Restriction:
    match node:
        case ast.BoolOp(op=op, values=values):
            parts, combined = (
                [_restriction(value, text, free) for value in values],
                all if isinstance(op, ast.And) else any,
            )
            return lambda binding: combined(part(binding) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            part = _restriction(operand, text, free)
            return lambda binding: not part(binding)
        case ast.Compare(left=left, ops=[ast.Eq() | ast.NotEq() as op], comparators=[right]):
            items = [right]
        case ast.Compare(
            left=left, ops=[ast.In() | ast.NotIn() as op], comparators=[ast.List(elts=items) | ast.Tuple(elts=items)]
        ):
            pass
        case _:
            raise _refuse(text, f"'{ast.unparse(node)}' does not restrict a name")
    mine, theirs = _word(left, text, free), [_word(item, text, free) for item in items]
    wanted = isinstance(op, ast.Eq | ast.In)
    return lambda binding: (mine(binding) in [word(binding) for word in theirs]) == wanted


def _word(node: ast.expr, text: str, free: Mapping[str, str]) -> Callable[[Mapping[str, str]], str]:
    """What a word of a restriction is under a binding: text as it stands, a free name as it is bound."""
    match node:
        case ast.Constant(value=str(word)):
            return lambda binding: word
        case ast.Name(id=name) if name in free:
            return lambda binding: binding[name]
    raise _refuse(text, f"'{ast.unparse(node)}' is neither text in quotes nor a name that the claim leaves free")


def _refuse(text: str, why: str) -> UserError:
    return UserError("bad_claim", f"the claim `{text.strip()}` cannot be read: {why}")

"""Rules that name a model's weights as other code does, and lay them out so; read in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from efftx.errors import UserError


@dataclass(frozen=True)
class Shapes:
    """What a weight's own shape does not tell of the authors' layout: heads, units a block of the sparse feed-forward,
    axes of axial positions, and which of them a table is.
    """

    n_heads: int = 1
    N: int = 1
    n_axes: int = 1
    axis: int = 0


class Layout(NamedTuple):
    """An array's number of axes as the authors have it, and how it is laid out here, and there again."""

    n_axes: tuple[int, ...]
    ours: Callable[[Tensor], Tensor]
    theirs: Callable[[Tensor, Shapes], Tensor]


AS_IT_IS = Layout((1, 2, 4), lambda w: w, lambda w, _: w)


@dataclass(frozen=True)
class Rule:
    """A name of the authors without its `w.`, the weight here, and the layout; in braces the parts that both have.

    {side}: enc., dec. or nothing, of a stack; {attn}: attn, attn0 or attn1; {i}, {j}: numbers; {x}: one of `x`.
    `if_theirs`: a name that must be there for an array to be read so, or with a ! must not; `if_ours` likewise for a
    weight to be written so, "never" for none.
    """

    theirs: str
    ours: str
    layout: Layout = AS_IT_IS
    x: tuple[str, ...] = ()
    if_theirs: str = ""
    if_ours: str = ""

    @cached_property
    def their_pattern(self) -> re.Pattern[str]:
        """Of the authors' name."""
        return _pattern(self.theirs, {"x": "|".join(self.x), "side": r"enc\.|dec\.|", "attn": r"attn\d*"})

    @cached_property
    def our_pattern(self) -> re.Pattern[str]:
        """Of the weight's name."""
        groups = {"stack": r"encoder_|", "attention": r"attention(?:_\d+)?"}
        return _pattern(self.ours, {"x": "|".join(self.x), **groups})


def _pattern(template: str, parts: Mapping[str, str]) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    named = (f"(?P<{word}>{parts.get(word, _NUMBER)})" if n % 2 else re.escape(word) for n, word in enumerate(pieces))
    return re.compile("".join(named))


_NUMBER = r"\d+"


def read(rules: Sequence[Rule], arrays: Mapping[str, Tensor], whose: str, prefix: str = "") -> dict[str, Tensor]:
    """The arrays of other code, whose names begin with `prefix`, under this package's names and in its layouts.

    A weight's gradient changes name and layout just as the weight does. Raises UserError for a name that is in no rule,
    for two arrays of one weight, and for an array that has another number of axes than its name wants.
    """
    weights: dict[str, Tensor] = {}
    for their_name, array in arrays.items():
        rule, name = _read_as(rules, their_name, arrays, whose, prefix)
        if name in weights:
            raise UserError("other_model", f"Two of the arrays are the weight '{name}', one of them '{their_name}'.")
        if array.dim() not in rule.layout.n_axes:
            wanted = " or ".join(map(str, rule.layout.n_axes))
            message = f"The array '{their_name}' has shape {tuple(array.shape)}; it should have {wanted} axes."
            raise UserError("other_model", message)
        weights[name] = rule.layout.ours(array)
    return _joined(weights)


def write(
    rules: Sequence[Rule], weights: Mapping[str, Tensor], shapes: Shapes, whose: str, prefix: str = ""
) -> dict[str, Tensor]:
    """The weights of a model under the names of other code and in its layouts: `read` the other way.

    Raises UserError for a weight that the other code has no name for.
    """
    apart = _apart(weights)
    arrays: dict[str, Tensor] = {}
    for name, tensor in apart.items():
        rule, their_name, shape = _written_as(rules, name, apart, shapes, whose)
        try:
            arrays[prefix + their_name] = rule.layout.theirs(tensor, shape).contiguous()
        except RuntimeError as error:
            raise _nameless(name, whose) from error
    return arrays


def _joined(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with those named `weight[i,j]` put together as one of shape (I, J, ..)."""
    whole: dict[str, Tensor] = {}
    pieces: dict[str, dict[tuple[int, int], Tensor]] = {}
    for name, tensor in arrays.items():
        match = re.fullmatch(r"(.+)\[(\d+),(\d+)\]", name)
        if match is None:
            whole[name] = tensor
        else:
            pieces.setdefault(match[1], {})[int(match[2]), int(match[3])] = tensor
    for name, parts in pieces.items():
        n_rows, n_columns = (max(index[axis] for index in parts) + 1 for axis in (0, 1))
        if len(parts) != n_rows * n_columns:
            raise UserError("other_model", f"Arrays of the weight '{name}' are missing.")
        rows = [torch.stack([parts[i, j] for j in range(n_columns)]) for i in range(n_rows)]
        whole[name] = torch.stack(rows)
    return whole


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `_joined` puts together, in its pieces again."""
    pieces: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith("base_weights"):
            pieces |= {f"{name}[{i},{j}]": piece for i, row in enumerate(tensor) for j, piece in enumerate(row)}
        else:
            pieces[name] = tensor
    return pieces


def _read_as(
    rules: Sequence[Rule], their_name: str, arrays: Mapping[str, Tensor], whose: str, prefix: str
) -> tuple[Rule, str]:
    for rule in rules:
        match = rule.their_pattern.fullmatch(their_name.removeprefix(prefix))
        if match is None or not their_name.startswith(prefix):
            continue
        parts = match.groupdict()
        number = int(parts.get("attn", "attn").removeprefix("attn") or 0)
        parts["stack"] = "encoder_" if parts.get("side") == "enc." else ""
        parts["attention"] = f"attention_{number + 1}" if number else "attention"
        if _holds(rule.if_theirs, parts, (name.removeprefix(prefix) for name in arrays)):
            return rule, rule.ours.format(**parts)
    raise UserError("other_model", f"No weight is called '{their_name}' by {whose}.")


def _written_as(
    rules: Sequence[Rule], name: str, weights: Mapping[str, Tensor], shapes: Shapes, whose: str
) -> tuple[Rule, str, Shapes]:
    has_encoder = any(other.startswith("encoder_") for other in weights)
    for rule in rules:
        match = rule.our_pattern.fullmatch(name)
        if match is None or not _holds(rule.if_ours, match.groupdict(), weights):
            continue
        parts = match.groupdict()
        number = int(parts.get("attention", "attention_1").partition("_")[2] or 1) - 1
        several = any(".attention_2." in other for other in weights) and not parts.get("stack")
        parts["attn"] = f"attn{number}" if several else "attn"
        parts["side"] = "enc." if parts.get("stack") else "dec." if has_encoder else ""
        if "tables" in name:
            tables = name.rpartition(".")[0]
            n_axes = sum(other.rpartition(".")[0] == tables for other in weights)
            shapes = replace(shapes, n_axes=n_axes, axis=int(parts["i"]))
        return rule, rule.theirs.format(**parts), shapes
    raise _nameless(name, whose)


def _holds(condition: str, parts: Mapping[str, str], names: Iterable[str]) -> bool:
    if condition in ("", "never"):
        return not condition
    return (condition.removeprefix("!").format(**parts) in set(names)) != condition.startswith("!")


def _nameless(name: str, whose: str) -> UserError:
    message = f"The weight '{name}' has no name among those of {whose}."
    return UserError("other_model", message, "Such a model cannot be exported there.")

"""Weights under the names and layouts of the authors' published code, put into this package's models.

Names of the authors' arrays, shapes, and where they go (I a layer; D d_model; H heads of width d; F d_ff; V vocabulary;
S the width that the head reads, 2 D where reversible streams are concatenated; L rows of a position table):

====================================  ============================  ================================================
array                                 shape                         parameter of `Decoder`
====================================  ============================  ================================================
w.embedding                           (V, D)                        embedding.weight
w.pos.table                           (L, D) or (1, L, D)           positions.table
w.pos.axisI                           (1.., shape[I], ..1, width)   positions.tables.I
w.layerI.{attn,ff}.ln.{scale,bias}    (D)                           blocks.I.{attention,feedforward}.norm.{weight,bias}
w.layerI.attn.w_{q,k,qk,v}            (H, D, d)                     blocks.I.attention.core.project.{q,k,qk,v}.weight
w.layerI.attn.w_o                     (H, d, D)                     blocks.I.attention.core.project.o.weight
w.layerI.attn.{q,k,v,o}.kernel        (D, H d); o: (H d, D)         blocks.I.attention.core.project.{q,k,v,o}.weight
w.layerI.attn.{q,k,v,o}.bias          (H d); o: (D)                 blocks.I.attention.core.project.{q,k,v,o}.bias
w.layerI.ff.w1, w.layerI.ff.w2        (D, F), (F, D)                blocks.I.feedforward.core.layers.{w1,w2}.weight
w.layerI.ff.b1, w.layerI.ff.b2        (F), (D)                      blocks.I.feedforward.core.layers.{w1,w2}.bias
w.final_ln.{scale,bias}               (S)                           head.norm.{weight,bias}
w.loss.kernel, w.loss.bias            (S, V), (V)                   head.linear.{weight,bias}
====================================  ============================  ================================================

A matrix of this package is stored with its outputs first, as `torch.nn.Linear` does; head h owns rows h d to (h + 1) d
of a projection, and the same columns of the output projection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from efftx.errors import UserError
from efftx.models.carry import carry_weights


def heads_to_linear(w_HDd: Tensor) -> Tensor:
    """Projections to each head, (H, D, d) -> the weight (H d, D) of one linear layer."""
    return w_HDd.transpose(1, 2).flatten(0, 1)


def heads_from_linear(w_HdD: Tensor) -> Tensor:
    """Projections from each head, (H, d, D) -> the weight (D, H d) of one linear layer."""
    return w_HdD.flatten(0, 1).t()


def _as_it_is(w: Tensor) -> Tensor:
    return w


def _transposed(kernel: Tensor) -> Tensor:
    return kernel.t()


def _rows(table: Tensor) -> Tensor:
    """Drops the axes of length one that the authors keep for broadcasting, (1, .., n, .., 1, width) -> (n, width)."""
    return table.reshape(-1, table.shape[-1])


_ATTENTION = r"blocks.\1.attention.core.project."
_FEEDFORWARD = r"blocks.\1.feedforward.core.layers."
_RULES: tuple[tuple[str, str, Callable[[Tensor], Tensor]], ...] = (
    (r"embedding", "embedding.weight", _as_it_is),
    (r"pos\.table", "positions.table", _rows),
    (r"pos\.axis(\d+)", r"positions.tables.\1", _rows),
    (r"layer(\d+)\.attn\.ln\.scale", r"blocks.\1.attention.norm.weight", _as_it_is),
    (r"layer(\d+)\.attn\.ln\.bias", r"blocks.\1.attention.norm.bias", _as_it_is),
    (r"layer(\d+)\.attn\.w_(q|k|qk|v)", _ATTENTION + r"\2.weight", heads_to_linear),
    (r"layer(\d+)\.attn\.w_o", _ATTENTION + "o.weight", heads_from_linear),
    (r"layer(\d+)\.attn\.(q|k|v|o)\.kernel", _ATTENTION + r"\2.weight", _transposed),
    (r"layer(\d+)\.attn\.(q|k|v|o)\.bias", _ATTENTION + r"\2.bias", _as_it_is),
    (r"layer(\d+)\.ff\.ln\.scale", r"blocks.\1.feedforward.norm.weight", _as_it_is),
    (r"layer(\d+)\.ff\.ln\.bias", r"blocks.\1.feedforward.norm.bias", _as_it_is),
    (r"layer(\d+)\.ff\.w([12])", _FEEDFORWARD + r"w\2.weight", _transposed),
    (r"layer(\d+)\.ff\.b([12])", _FEEDFORWARD + r"w\2.bias", _as_it_is),
    (r"final_ln\.scale", "head.norm.weight", _as_it_is),
    (r"final_ln\.bias", "head.norm.bias", _as_it_is),
    (r"loss\.kernel", "head.linear.weight", _transposed),
    (r"loss\.bias", "head.linear.bias", _as_it_is),
)
"""The table above: an author's name without its `w.`, the parameter, and the change of layout."""


def from_authors(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays under this package's names and in its layouts; raises UserError for a name that is not in the table.

    A weight's gradient changes name and layout just as the weight does.
    """
    found: dict[str, Tensor] = {}
    for author_name, array in arrays.items():
        name, layout = _rule(author_name)
        if name in found:
            raise UserError("other_model", f"Two of the arrays are the weight '{name}', one of them '{author_name}'.")
        found[name] = layout(array)
    return found


def load_from_authors(model: nn.Module, arrays: Mapping[str, Tensor]) -> None:
    """Copies the authors' arrays into `model`.

    Raises UserError for an unknown name, a missing array, a weight that the model does not have, and another shape.
    """
    carry_weights(model, from_authors(arrays), None)


def _rule(author_name: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    for pattern, name, layout in _RULES:
        match = re.fullmatch(r"w\." + pattern, author_name)
        if match is not None:
            return match.expand(name), layout
    raise UserError(
        "other_model",
        f"No weight of a decoder is called '{author_name}' by the authors.",
        "efftx/models/author_weights.py lists the names that are known.",
    )

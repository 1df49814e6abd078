"""Weights under the names and layouts of the authors' published code, put into this package's models.

Names of the authors' arrays, shapes, and where they go (I a layer; D d_model; H heads of width d; F d_ff; V tokens;
N units a block and G blocks, G N = F; R the controller's rank; M modules' width and S modules, S M = D; K kernel;
u the SRU's width; T the width that the head reads, 2 D where reversible streams are concatenated; L rows of a
position table; P digits of a base):

=======================================  =========================  ==================================================
array                                    shape                      parameter
=======================================  =========================  ==================================================
w.embedding                              (V, D)                     embedding.weight
w.[E.]pos.table                          (L, D) or (1, L, D)        X.table
w.[E.]pos.axisI                          (1.., shape[I], ..1, w)    X.tables.I
w.[E.]pos.baseB.digitI                   (1, D / P)                 X.base_weights[B, I]
w.[E.]pos.start_vec                      (1, 1, D)                  X.start_vec
w.[E.]layerI.{attn,cross,ff}.ln.scale    (D)                        Y.I.{attention,cross_attention,feedforward}.norm
w.[E.]layerI.attn.w_{q,k,qk,v}           (H, D, d)                  Y.I.Z.{q,k,qk,v}.weight
w.[E.]layerI.attn.w_o                    (H, d, D)                  Y.I.Z.o.weight
w.[E.]layerI.attn.{q,k,v,o}.kernel       (D, H d); o: (H d, D)      Y.I.Z.{q,k,v,o}.weight
w.[E.]layerI.attn.mult.{gate,proj,bias}  (S, D), (D, M), (D)        Y.I.Z.multiplicative.{gate,proj,bias}
w.[E.]layerI.attn.conv_{q,k,v}.kernel    (K, 3 or 1, M, M)          Y.I.Z.{q,k,v}.kernel
w.[E.]layerI.cross.{q,o}.kernel          (D, H d), (H d, D)         Y.I.cross_attention.core.query.{q,o}.weight
w.[E.]layerI.cross.{k,v}.kernel          (D, H d)                   Y.I.cross_attention.core.{k,v}.weight
w.[E.]layerI.ff.w1, w.[E.]layerI.ff.w2   (D, F), (F, D)             Y.I.feedforward.core.layers.{w1,w2}.weight
w.[E.]layerI.ff.controller.m1            (D, R)                     Y.I.feedforward.core.c1
w.[E.]layerI.ff.controller.m2, .mb       (R, G, N), (G, N)          Y.I.feedforward.core.{c2,c_bias}
w.[E.]layerI.ff.main.w1, .w2, .b2        (D, G, N), (N, G, D), (D)  Y.I.feedforward.core.{w1,w2,b2}
w.[E.]layerI.ff.sru_{ln,in,out}          (D), (D, u), (u, D)        Y.I.feedforward.beside.{norm,into,out}
w.[E.]layerI.ff.sruJ.{kernel,bias}       (u, 3 u), (3 u)            Y.I.feedforward.beside.layers.J.{kernel,bias}
w.enc.out.{kernel,bias}                  (D, D), (D)                junction.bridge.{weight,bias}
w.enc.{final_ln,out_ln}.{scale,bias}     (D)                        junction.norm.{weight,bias}
w.[dec.]final_ln.{scale,bias}            (T)                        head.norm.{weight,bias}
w.loss.kernel, w.loss.bias               (T, V), (V)                head.linear.{weight,bias}
w.loss.{gate,proj,bias}                  (S, T), (T, V / S), (V)    head.linear.layer.{gate,proj,bias}
=======================================  =========================  ==================================================

E is enc or dec: X is encoder_positions or positions, Y encoder_blocks or blocks; without it, those of the only stack.
Z is attention.core.project. Biases go where their kernels do.
A matrix of this package is stored with its outputs first, as `torch.nn.Linear` does, the kernels of SRU and convolution
as the authors have them; head h owns rows h d to (h + 1) d of a projection, and the same columns of the output
projection; unit e of block g is row g N + e of w1, w2 and c2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from efftx.errors import UserError
from efftx.models.conversion import load_weights


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


def _flat_units(w: Tensor) -> Tensor:
    """Blocks and units as one last axis, then first: (.., G, N) -> (G N, ..)."""
    flat = w.flatten(-2)
    return flat.t() if flat.dim() == 2 else flat


def _units_first(w2_NGD: Tensor) -> Tensor:
    """The authors' second matrix, whose unit axis comes before its block axis, (N, G, D) -> (G N, D)."""
    return w2_NGD.transpose(0, 1).flatten(0, 1)


def _vector(w: Tensor) -> Tensor:
    return w.flatten()


_SIDE = r"(enc\.|dec\.)?"
_LAYER = _SIDE + r"layer(\d+)\."
_BLOCK = r"{blocks}.\2."
_PARTS = {"attn": "attention", "cross": "cross_attention", "ff": "feedforward"}
_RULES: tuple[tuple[str, str, Callable[[Tensor], Tensor]], ...] = (
    (r"embedding", "embedding.weight", _as_it_is),
    (_SIDE + r"pos\.table", "{positions}.table", _rows),
    (_SIDE + r"pos\.axis(\d+)", r"{positions}.tables.\2", _rows),
    (_SIDE + r"pos\.base(\d+)\.digit(\d+)", r"{positions}.base_weights[\2,\3]", _vector),
    (_SIDE + r"pos\.start_vec", "{positions}.start_vec", _vector),
    *(
        (_LAYER + rf"{part}\.ln\.{theirs}", _BLOCK + f"{_PARTS[part]}.norm.{ours}", _as_it_is)
        for part in _PARTS
        for theirs, ours in (("scale", "weight"), ("bias", "bias"))
    ),
    (_LAYER + r"attn\.w_(q|k|qk|v)", _BLOCK + r"attention.core.project.\3.weight", heads_to_linear),
    (_LAYER + r"attn\.w_o", _BLOCK + "attention.core.project.o.weight", heads_from_linear),
    (_LAYER + r"attn\.(q|k|v|o)\.kernel", _BLOCK + r"attention.core.project.\3.weight", _transposed),
    (_LAYER + r"attn\.(q|k|v|o)\.bias", _BLOCK + r"attention.core.project.\3.bias", _as_it_is),
    (_LAYER + r"cross\.(q|o)\.kernel", _BLOCK + r"cross_attention.core.query.\3.weight", _transposed),
    (_LAYER + r"cross\.(q|o)\.bias", _BLOCK + r"cross_attention.core.query.\3.bias", _as_it_is),
    (_LAYER + r"cross\.(k|v)\.kernel", _BLOCK + r"cross_attention.core.\3.weight", _transposed),
    (_LAYER + r"cross\.(k|v)\.bias", _BLOCK + r"cross_attention.core.\3.bias", _as_it_is),
    (_LAYER + r"attn\.mult\.(gate|proj|bias)", _BLOCK + r"attention.core.project.multiplicative.\3", _as_it_is),
    (_LAYER + r"attn\.conv_(q|k|v)\.(kernel|bias)", _BLOCK + r"attention.core.project.\3.\4", _as_it_is),
    (_LAYER + r"ff\.w([12])", _BLOCK + r"feedforward.core.layers.w\3.weight", _transposed),
    (_LAYER + r"ff\.b([12])", _BLOCK + r"feedforward.core.layers.w\3.bias", _as_it_is),
    (_LAYER + r"ff\.controller\.m1", _BLOCK + "feedforward.core.c1", _transposed),
    (_LAYER + r"ff\.controller\.m2", _BLOCK + "feedforward.core.c2", _flat_units),
    (_LAYER + r"ff\.controller\.mb", _BLOCK + "feedforward.core.c_bias", _flat_units),
    (_LAYER + r"ff\.main\.w1", _BLOCK + "feedforward.core.w1", _flat_units),
    (_LAYER + r"ff\.main\.w2", _BLOCK + "feedforward.core.w2", _units_first),
    (_LAYER + r"ff\.main\.b2", _BLOCK + "feedforward.core.b2", _as_it_is),
    (_LAYER + r"ff\.sru_ln\.scale", _BLOCK + "feedforward.beside.norm.weight", _as_it_is),
    (_LAYER + r"ff\.sru_ln\.bias", _BLOCK + "feedforward.beside.norm.bias", _as_it_is),
    (_LAYER + r"ff\.sru_in\.kernel", _BLOCK + "feedforward.beside.into.weight", _transposed),
    (_LAYER + r"ff\.sru_in\.bias", _BLOCK + "feedforward.beside.into.bias", _as_it_is),
    (_LAYER + r"ff\.sru(\d+)\.(kernel|bias)", _BLOCK + r"feedforward.beside.layers.\3.\4", _as_it_is),
    (_LAYER + r"ff\.sru_out\.kernel", _BLOCK + "feedforward.beside.out.weight", _transposed),
    (_LAYER + r"ff\.sru_out\.bias", _BLOCK + "feedforward.beside.out.bias", _as_it_is),
    (r"enc\.out\.kernel", "junction.bridge.weight", _transposed),
    (r"enc\.out\.bias", "junction.bridge.bias", _as_it_is),
    (r"enc\.(?:out|final)_ln\.scale", "junction.norm.weight", _as_it_is),
    (r"enc\.(?:out|final)_ln\.bias", "junction.norm.bias", _as_it_is),
    (r"(?:dec\.)?final_ln\.scale", "head.norm.weight", _as_it_is),
    (r"(?:dec\.)?final_ln\.bias", "head.norm.bias", _as_it_is),
    (r"loss\.kernel", "head.linear.weight", _transposed),
    (r"loss\.bias", "head.linear.bias", _as_it_is),
    (r"loss\.(gate|proj)", r"head.linear.layer.\1", _as_it_is),
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
    if "head.linear.layer.gate" in found:
        found["head.linear.layer.bias"] = found.pop("head.linear.bias")
    return _joined(found)


def _joined(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with those named `weight[i,j]` put together as one of shape (I, J, ..)."""
    whole: dict[str, Tensor] = {}
    pieces: dict[str, dict[tuple[int, int], Tensor]] = {}
    for name, tensor in found.items():
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


def load_from_authors(model: nn.Module, arrays: Mapping[str, Tensor]) -> None:
    """Copies the authors' arrays into `model`.

    Raises UserError for an unknown name, a missing array, a weight that the model does not have, and another shape.
    """
    load_weights(model, from_authors(arrays), None)


def _rule(author_name: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    for pattern, name, layout in _RULES:
        match = re.fullmatch(r"w\." + pattern, author_name)
        if match is not None:
            encoder = author_name.startswith("w.enc.")
            places = {
                "blocks": "encoder_blocks" if encoder else "blocks",
                "positions": "encoder_positions" if encoder else "positions",
            }
            return match.expand(name).format(**places), layout
    raise UserError(
        "other_model",
        f"No weight is called '{author_name}' by the authors.",
        "efftx/models/author_weights.py lists the names that are known.",
    )

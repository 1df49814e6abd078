"""Weights under the names and layouts of the authors' published code, into this package's models and out of them.

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
w.[E.]layerI.attn.b_{q,k,qk,v}           (H, d)                     Y.I.Z.{q,k,qk,v}.bias
w.[E.]layerI.attn.{q,k,qk,v,o}.kernel    (D, H d); o: (H d, D)      Y.I.Z.{q,k,qk,v,o}.weight
w.[E.]layerI.attn.mult.{gate,proj,bias}  (S, D), (D, M), (D)        Y.I.Z.multiplicative.{gate,proj,bias}
w.[E.]layerI.attn.conv_{q,k,qk,v}.kernel (K, 3 or 1, M, M)          Y.I.Z.{q,k,qk,v}.kernel
w.[E.]layerI.attn.out_mult.{gate,..}     (S, D), (D, M), (D)        Y.I.Z.o.multiplicative.{gate,proj,bias}
w.[E.]layerI.attn.out_conv.kernel        (K, 3, M, M)               Y.I.Z.o.convolution.kernel
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
Z is attention.core.project; of the sub-layers attn0, attn1 of a block the second is attention_2. Biases go where their
kernels do. A dense output behind sparse queries and keys, attn.o, is Y.I.Z.o.dense.
A matrix of this package is stored with its outputs first, as `torch.nn.Linear` does, the kernels of SRU and convolution
as the authors have them; head h owns rows h d to (h + 1) d of a projection, and the same columns of the output
projection; unit e of block g is row g N + e of w1, w2 and c2.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from efftx.models.weight_rules import AS_IT_IS, Layout, Rule, Shapes, read, write

PREFIX = "w."
WHOSE = "the authors"


def heads_to_linear(w_HDd: Tensor) -> Tensor:
    """Projections to each head, (H, D, d) -> the weight (H d, D) of one linear layer."""
    return w_HDd.transpose(1, 2).flatten(0, 1)


def heads_from_linear(w_HdD: Tensor) -> Tensor:
    """Projections from each head, (H, d, D) -> the weight (D, H d) of one linear layer."""
    return w_HdD.flatten(0, 1).t()


def _axial(table: Tensor, shapes: Shapes) -> Tensor:
    ones = [1] * shapes.n_axes
    ones[shapes.axis] = table.shape[0]
    return table.reshape(1, *ones, table.shape[1])


def _flat_units(w: Tensor) -> Tensor:
    """Blocks and units as one last axis, then first: (.., G, N) -> (G N, ..)."""
    flat = w.flatten(-2)
    return flat.t() if flat.dim() == 2 else flat


def _rows(table: Tensor) -> Tensor:
    """Drops the axes of length one that the authors keep for broadcasting, (1, .., n, .., 1, width) -> (n, width)."""
    return table.reshape(-1, table.shape[-1])


_KERNEL = Layout((2,), lambda w: w.t(), lambda w, _: w.t())
_TO_HEADS = Layout((3,), heads_to_linear, lambda w, s: w.unflatten(0, (s.n_heads, -1)).transpose(1, 2))
_FROM_HEADS = Layout((3,), heads_from_linear, lambda w, s: w.t().unflatten(0, (s.n_heads, -1)))
_OF_HEADS = Layout((2,), lambda b: b.flatten(), lambda b, s: b.unflatten(0, (s.n_heads, -1)))
_TABLE = Layout((2, 3), _rows, lambda w, _: w.unsqueeze(0))
_DIGIT = Layout((2,), lambda w: w.flatten(), lambda w, _: w.unsqueeze(0))
_START = Layout((3,), lambda w: w.flatten(), lambda w, _: w[None, None])
_UNITS = Layout((2, 3), _flat_units, lambda w, s: w.t().unflatten(-1, (-1, s.N)))
# Of the second matrix the unit axis comes before the block axis.
_UNITS_FIRST = Layout(
    (3,), lambda w: w.transpose(0, 1).flatten(0, 1), lambda w, s: w.unflatten(0, (-1, s.N)).transpose(0, 1)
)
_AXIS = Layout((3, 4, 5, 6), _rows, _axial)


_LAYER, _BLOCK = "{side}layer{i}.", "{stack}blocks.{i}."
_ATTN, _ATTENTION = _LAYER + "{attn}.", _BLOCK + "{attention}."
_PROJECT = _ATTENTION + "core.project."
_FF, _FEEDFORWARD = _LAYER + "ff.", _BLOCK + "feedforward."
_NORMS = ((_ATTN, _ATTENTION), (_LAYER + "cross.", _BLOCK + "cross_attention."), (_FF, _FEEDFORWARD))
_QKV = ("q", "k", "qk", "v")
_FACTORS = ("gate", "proj", "bias")


def _dense(theirs: str, ours: str, *x: str, if_theirs: str = "", if_ours: str = "") -> tuple[Rule, Rule]:
    """A kernel, transposed, and its bias."""
    return (
        Rule(f"{theirs}.kernel", f"{ours}.weight", _KERNEL, x, if_theirs, if_ours),
        Rule(f"{theirs}.bias", f"{ours}.bias", AS_IT_IS, x, if_theirs, if_ours or f"{ours}.weight"),
    )


def _norm(theirs: str, ours: str, if_ours: str = "") -> tuple[Rule, Rule]:
    return (
        Rule(f"{theirs}.scale", f"{ours}.weight", if_ours=if_ours),
        Rule(f"{theirs}.bias", f"{ours}.bias", if_ours=if_ours),
    )


_CROSSED = "blocks.0.cross_attention.norm.weight"
_RULES: tuple[Rule, ...] = (
    Rule("embedding", "embedding.weight"),
    Rule("{side}pos.table", "{stack}positions.table", _TABLE),
    Rule("{side}pos.axis{i}", "{stack}positions.tables.{i}", _AXIS),
    Rule("{side}pos.base{i}.digit{j}", "{stack}positions.base_weights[{i},{j}]", _DIGIT),
    Rule("{side}pos.start_vec", "{stack}positions.start_vec", _START),
    *(rule for theirs, ours in _NORMS for rule in _norm(theirs + "ln", ours + "norm")),
    # Their efficient attention has a matrix a head, and no bias in their models: with one, weights leave as dense.
    Rule(_ATTN + "w_{x}", _PROJECT + "{x}.weight", _TO_HEADS, _QKV, if_ours="!" + _PROJECT + "{x}.bias"),
    Rule(_ATTN + "b_{x}", _PROJECT + "{x}.bias", _OF_HEADS, _QKV, if_ours="never"),
    Rule(_ATTN + "w_o", _PROJECT + "o.weight", _FROM_HEADS, if_ours="!" + _PROJECT + "o.bias"),
    *_dense(_ATTN + "{x}", _PROJECT + "{x}", *_QKV),
    *_dense(_ATTN + "o", _PROJECT + "o", if_theirs="!" + _ATTN + "mult.gate"),
    *_dense(_ATTN + "o", _PROJECT + "o.dense", if_theirs=_ATTN + "mult.gate"),
    Rule(_ATTN + "mult.{x}", _PROJECT + "multiplicative.{x}", x=_FACTORS),
    Rule(_ATTN + "conv_{x}.kernel", _PROJECT + "{x}.kernel", x=_QKV),
    Rule(_ATTN + "conv_{x}.bias", _PROJECT + "{x}.bias", x=_QKV, if_ours=_PROJECT + "{x}.kernel"),
    Rule(_ATTN + "out_mult.{x}", _PROJECT + "o.multiplicative.{x}", x=_FACTORS),
    Rule(_ATTN + "out_conv.{x}", _PROJECT + "o.convolution.{x}", x=("kernel", "bias")),
    *_dense(_LAYER + "cross.{x}", _BLOCK + "cross_attention.core.query.{x}", "q", "o"),
    *_dense(_LAYER + "cross.{x}", _BLOCK + "cross_attention.core.{x}", "k", "v"),
    Rule(_FF + "w{x}", _FEEDFORWARD + "core.layers.w{x}.weight", _KERNEL, ("1", "2")),
    Rule(_FF + "b{x}", _FEEDFORWARD + "core.layers.w{x}.bias", x=("1", "2")),
    Rule(_FF + "controller.m1", _FEEDFORWARD + "core.c1", _KERNEL),
    Rule(_FF + "controller.m2", _FEEDFORWARD + "core.c2", _UNITS),
    Rule(_FF + "controller.mb", _FEEDFORWARD + "core.c_bias", _UNITS),
    Rule(_FF + "main.w1", _FEEDFORWARD + "core.w1", _UNITS),
    Rule(_FF + "main.w2", _FEEDFORWARD + "core.w2", _UNITS_FIRST),
    Rule(_FF + "main.b2", _FEEDFORWARD + "core.b2"),
    *_norm(_FF + "sru_ln", _FEEDFORWARD + "beside.norm"),
    *_dense(_FF + "sru_in", _FEEDFORWARD + "beside.into"),
    *_dense(_FF + "sru_out", _FEEDFORWARD + "beside.out"),
    Rule(_FF + "sru{j}.{x}", _FEEDFORWARD + "beside.layers.{j}.{x}", x=("kernel", "bias")),
    *_dense("enc.out", "junction.bridge"),
    *_norm("enc.out_ln", "junction.norm", if_ours="junction.bridge.weight"),
    *_norm("enc.final_ln", "junction.norm"),
    *_norm("final_ln", "head.norm", if_ours="!" + _CROSSED),
    *_norm("dec.final_ln", "head.norm"),
    *_dense("loss", "head.linear", if_theirs="!loss.gate"),
    Rule("loss.{x}", "head.linear.layer.{x}", x=_FACTORS, if_theirs="loss.gate"),
)
"""The table above, read both ways; the first rule that fits."""


def from_authors(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays, or gradients of them, under this package's names and in its layouts; UserError as `read`."""
    return read(_RULES, arrays, WHOSE, PREFIX)


def to_authors(weights: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """The weights of a model under the authors' names and in their layouts; UserError as `write`."""
    return write(_RULES, weights, shapes, WHOSE, PREFIX)

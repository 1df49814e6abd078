"""The models whose decoding is timed, at the widths of the paper's tables and at any other.

What stands in a case is what one token of one row reads: decoder blocks and the logits. Encoders are left out: their
output is read through cached keys and values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import gcd

from efftx.config.compose import compose
from efftx.config.schema import Config
from efftx.decoding.quantization import QUANTIZATIONS, Quantization
from efftx.errors import UserError, nearest

VOCABULARY = 32_000
MEMORY_TOKENS = 16
"""Of the encoder's output, where a model has cross-attention."""


@dataclass(frozen=True)
class Case:
    """A configuration, and how many decoder blocks of it a token passes; with a `quantization` it
    reads dense weights, and rows of a sparse feed-forward, so."""

    name: str
    overrides: tuple[str, ...]
    n_blocks: int
    quantization: Quantization | None = None
    vocab_size: int = VOCABULARY

    def config(self) -> Config:
        """The composed configuration, at the paper's size but for what the case says; d_ff is the one stated."""
        return _composed(self.overrides)


@cache
def _composed(overrides: tuple[str, ...]) -> Config:
    dense = "model=reformer" in overrides or {"sparse_ff.N=0", "sparse_qkv.S=0"} <= set(overrides)
    return compose(["size=paper", "data=c4", *([] if dense else ["d_ff_rule=given"]), *overrides])


_800M = ("model=scaling",)
_17B = ("model=scaling", "d_model=9216", "n_heads=96")
_APART = ("attention=[full]", "share_qk=false")  # as in the authors' timing, whose rows are short
_TERRAFORMER = ("model=terraformer", "d_model=9216", "n_heads=96", *_APART)
_DENSE = ("sparse_ff.N=0", "sparse_qkv.S=0")
_FF_800M = ("sparse_ff.N=64", "sparse_qkv.S=0", "d_ff=4096")
_FF_17B = ("sparse_ff.N=256", "sparse_ff.rank=32")
_QKV_17B = ("sparse_qkv.S=64", "sparse_qkv.F=3", "d_ff=65536")
_NO_CROSS = ("stack=decoder", "objective=lm")
_REFORMER = ("model=reformer", "preset=reformer/enwik8_2020")


def _of_terraformer(name: str, *overrides: str) -> Case:
    return Case(f"terraformer-{name}", (*_TERRAFORMER, *overrides), 6)


_NO_SRU = "sru.n_layers=0"
_BIG_SRU = "sru.d=64"
_CASES = [
    Case("800m-dense", (*_800M, *_DENSE, "d_ff=4096"), 24),
    Case("800m-dense-decoder", (*_800M, *_DENSE, "d_ff=4096", *_NO_CROSS), 24),
    Case("800m-ff64", (*_800M, *_FF_800M), 24),
    Case("800m-ff128", (*_800M, *_FF_800M, "sparse_ff.N=128"), 24),
    Case("800m-qkv", (*_800M, "sparse_ff.N=0", "sparse_qkv.S=16", "d_ff=6144"), 24),
    Case("800m-ff-qkv", (*_800M, "sparse_ff.N=64", "sparse_qkv.S=16", "d_ff=6144"), 24),
    Case("800m-ff-qkv-loss4", (*_800M, "sparse_ff.N=64", "sparse_qkv.S=16", "d_ff=6144", "sparse_loss.S=4"), 24),
    Case("800m-terraformer", ("model=terraformer", *_APART, "d_ff=6144"), 24),
    Case("17b-dense", (*_17B, *_DENSE, "d_ff=40960"), 6),
    Case("17b-ff", (*_17B, *_FF_17B, "sparse_qkv.S=0", "d_ff=40960"), 6),
    Case("17b-qkv", (*_17B, "sparse_ff.N=0", *_QKV_17B), 6),
    Case("17b-qkv-query", (*_17B, "sparse_ff.N=0", *_QKV_17B, "sparse_qkv.cross=query"), 6),
    Case("17b-ff-qkv-cross", (*_17B, *_FF_17B, *_QKV_17B), 6),
    Case("17b-ff-qkv-query", (*_17B, *_FF_17B, *_QKV_17B, "sparse_qkv.cross=query"), 6),
    Case("17b-ff-qkv", (*_17B, *_FF_17B, *_QKV_17B, *_NO_CROSS), 6),
    Case("17b-ff-qkv-loss4", (*_17B, *_FF_17B, *_QKV_17B, *_NO_CROSS, "sparse_loss.S=4"), 6),
    Case("reformer-12", _REFORMER, 12, vocab_size=256),
    Case("reformer-12-full", (*_REFORMER, "attention=[full]"), 12, vocab_size=256),
    _of_terraformer("dense", *_DENSE, "sparse_loss.S=0", _NO_SRU, "d_ff=40960"),
    _of_terraformer("ff", *_FF_17B, "sparse_qkv.S=0", "sparse_loss.S=0", _BIG_SRU, "d_ff=40960"),
    _of_terraformer("ff-qkv", *_FF_17B, *_QKV_17B, "sparse_loss.S=0", _BIG_SRU),
    _of_terraformer("ff-qkv-loss4", *_FF_17B, *_QKV_17B, "sparse_loss.S=4", _BIG_SRU),
    _of_terraformer("ff-qkv-loss8", *_FF_17B, *_QKV_17B, "sparse_loss.S=8", _BIG_SRU),
]
CASES: Mapping[str, Case] = {case.name: case for case in _CASES}
"""800m: d_model 1024, 24 decoder blocks; 800m-terraformer is the authors' medium size with all its sparse layers. 17b,
terraformer: d_model 9216, 6 blocks (the whole-token times of the paper imply as many). `-cross`: dense cross-attention;
`-query`: its query sparse and no output projection; else none in the rows with sparse QKV and sparse feed-forward.
`-decoder`: none, as in peers of GPT-2's kind.
Vocabulary 32,000. reformer-12: the authors' best model of enwik8's bytes, whose layers are local, local, LSH and local,
three times; `-full`: all of them in full. Vocabulary 256."""
WIDTH, LOGITS = "width-", "logits-"
_BEHIND = re.compile("(.+?)(-int8|-int4)?(?:-blocks([0-9]{1,6}))?(-int8|-int4)?")


def case_named(name: str) -> Case:
    """The case called `name`; `-int8` or `-int4` behind it reads dense weights so, and `-blocksN` passes N blocks.

    They may stand in either order. `width-512-dense` and `width-512-sparse` are six decoder blocks of that width in the
    proportions of the 800M model, `logits-1024-s4` is the layer to the vocabulary alone, with S = 4 modules or, at s0,
    dense. UserError with the nearest name, or how such a name is made, for any other.
    """
    match = _BEHIND.fullmatch(name)
    base, first, n_blocks, last = match.groups() if match else (name, None, None, None)
    by_prefix = {WIDTH: _of_width, LOGITS: _of_logits}
    make = next((make for prefix, make in by_prefix.items() if base.startswith(prefix)), CASES.get)
    case = make(base)
    if case is None or (first and last):
        forms = {WIDTH: "width-N-dense or width-N-sparse, N a multiple of 128", LOGITS: "logits-N-sM, 16 dividing N"}
        form = next((f"It is {form}." for prefix, form in forms.items() if base.startswith(prefix)), None)
        raise UserError("unknown_name", f"There is no names={name} here.", form or nearest(base, CASES))
    n = case.n_blocks if n_blocks is None else int(n_blocks)
    if n_blocks is not None and n % (cycle := blocks_until_kinds_repeat(case.config())):
        message = f"names={name}: the kinds of attention in its blocks repeat after {cycle} of them."
        raise UserError("bad_value", message, f"Take a multiple, such as {base}-blocks{cycle}.")
    quantization = next((each for each in QUANTIZATIONS if f"-{each}" in (first, last)), None)
    return replace(case, name=name, quantization=quantization, n_blocks=n)


def blocks_until_kinds_repeat(config: Config) -> int:
    """Blocks of a stack after which its kinds of attention come again."""
    return len(config.attention) // gcd(len(config.attention), config.attention_per_block)


def _of_width(name: str) -> Case | None:
    """Heads of 64, d_ff four times the width, or six where sparse; N 64 and modules of 64; six decoder blocks."""
    _, _, rest = name.partition("-")
    width, _, kind = rest.partition("-")
    if not width.isdecimal() or int(width) % 128 or kind not in ("dense", "sparse"):
        return None
    d_model = int(width)
    common = ("model=scaling", f"d_model={d_model}", f"n_heads={d_model // 64}", *_NO_CROSS)
    if kind == "dense":
        return Case(name, (*common, *_DENSE, f"d_ff={4 * d_model}"), 6)
    sparse = ("sparse_ff.N=64", f"sparse_qkv.S={d_model // 64}", f"d_ff={6 * d_model}")
    return Case(name, (*common, *sparse), 6)


def _of_logits(name: str) -> Case | None:
    """No block, and logits of S modules: what the third paper's table 3 times alone."""
    parts = name.split("-")
    if len(parts) != 3 or not parts[1].isdecimal() or parts[2][:1] != "s" or not parts[2][1:].isdecimal():
        return None
    width, S = int(parts[1]), int(parts[2][1:])
    overrides = ("model=scaling", f"d_model={width}", *_DENSE, *_NO_CROSS, f"sparse_loss.S={S}")
    return Case(name, overrides, 0) if width and width % 16 == 0 else None

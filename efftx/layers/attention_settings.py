"""The keys of every kind of attention, and what they may be; read without torch."""

import math
from dataclasses import dataclass, field, replace
from typing import Self

from efftx.errors import UserError, nearest


class AttentionConfig:
    """The node of a kind of attention, whose name in the schema is the kind's word in `attention=`."""

    def check(self, kind: str, n_heads: int | None, length: int) -> None:
        """Raises UserError for what rows of `length` tokens or `n_heads` heads cannot have; `kind` names the node.

        `n_heads` None: the heads are not known yet.
        """

    def in_small(self, scale: float, length: int) -> Self:
        """The same scaled down from rows of `length` tokens by `scale`: what it connects can be looked at in small."""
        return self


@dataclass
class FullConfig(AttentionConfig):
    """`query_block`: queries whose scores exist at a time; 0 is PyTorch's fused kernel, which keeps none."""

    query_block: int = 0


HASHINGS = ("angular", "random")
MOST_CODES = 2**23
"""Buckets of all rounds, or positions of a row, that hash attention tells apart: float32 holds no more half steps."""


@dataclass
class LSHConfig(AttentionConfig):
    """Keys of LSH attention (Reformer, section 2).

    `n_hashes` rounds; `n_buckets` one even number or a list of even factors, empty for the authors' rule (two buckets a
    chunk); `chunk_len` queries a chunk, which see their own chunk, the one before and, unless causal, the one after.
    The paper's equations forbid attention across buckets and count a pair found in several rounds once; the authors'
    later code does neither. Rows of at most `full_below` tokens attend in full and hash nothing (Terraformer: hashing
    pays on long inputs only). The number of buckets and `full_below` go by the length of the model's rows, so that a
    shorter row, or one that is decoded, is hashed as in training. Padding has a bucket of its own and changes nothing
    for a real token; with `padding_in_chunks`, as in the authors' code, it takes places among the tokens of a joined
    row, and beside the ends of a round. `hashing`: angular, the paper's; or random, which draws a token's bucket
    without looking at it: the control that says what the hash itself is worth.
    """

    n_hashes: int = 2
    n_buckets: list[int] = field(default_factory=list)
    chunk_len: int = 64
    attend_across_buckets: bool = False
    allow_duplicates: bool = False
    full_below: int = 0
    padding_in_chunks: bool = False
    hashing: str = "angular"

    def check(self, kind: str, n_heads: int | None, length: int) -> None:
        """Raises UserError for a hashing that is not known, and for more buckets or positions than are told apart."""
        if self.hashing not in HASHINGS:
            raise UserError(
                "bad_value", f"{kind}.hashing={self.hashing} is not known.", nearest(self.hashing, HASHINGS)
            )
        if length <= self.full_below:
            return
        if self.attend_across_buckets:
            padded = math.ceil(length / self.chunk_len) * self.chunk_len
            if padded > MOST_CODES:
                raise UserError(
                    "bad_value",
                    f"{kind}.attend_across_buckets=true tells the places of {MOST_CODES} tokens apart, and a row has "
                    f"{padded} in chunks of {kind}.chunk_len={self.chunk_len}.",
                    f"Set {kind}.attend_across_buckets=false, or take shorter rows.",
                )
            return
        # Of the automatic number only what it is rounded from is known here.
        n_buckets = math.prod(self.n_buckets) if self.n_buckets else 2 * max(1, length // self.chunk_len)
        if self.n_hashes * (n_buckets + 2) > MOST_CODES:
            raise UserError(
                "bad_value",
                f"{kind}.n_hashes={self.n_hashes} rounds of {n_buckets} buckets are more than the {MOST_CODES} that "
                "are told apart.",
                f"Take at most {MOST_CODES // self.n_hashes - 2} buckets a round: {kind}.n_buckets, or a larger "
                f"{kind}.chunk_len where they follow from it.",
            )


@dataclass
class LocalConfig(AttentionConfig):
    """Neighbours alone: the authors' chunks (Reformer), or a window (Sparse Transformer).

    `chunk_len`: positions in a chunk; a query sees its own, the one before and, unless causal, the one after. `window`
    above 0 instead: it sees the last `window` positions, its own among them, and unless causal as many after it.
    """

    chunk_len: int = 128
    window: int = 0

    def in_small(self, scale: float, length: int) -> Self:
        """Chunks and window scaled."""
        window = _scaled(self.window, scale) if self.window else 0
        return replace(self, chunk_len=_scaled(self.chunk_len, scale), window=window)


@dataclass
class IdentityConfig(AttentionConfig):
    """No attention: the branch adds nothing, and the residual stream passes as it is. A control."""


MODES = ("interleaved", "merged", "heads", "first", "second")
"""How the two factors of a pattern are used (Sparse Transformer, section 4.1): one a layer in turn, both in one head,
one a head in turn; or only one of them."""


class FactoredConfig(AttentionConfig):
    """The node of a pattern of two factors, a `stride` apart, used as `mode` says (`MODES`)."""

    stride: int
    mode: str

    def stride_of(self, length: int) -> int:
        """The stride in rows of `length` tokens."""
        return self.stride or near_root(length)

    def turns(self) -> dict[str, int]:
        """What makes heads take different sets of keys in turn, in words, and how many."""
        return {"mode=heads": 2} if self.mode == "heads" else {}

    def check(self, kind: str, n_heads: int | None, length: int) -> None:
        """Raises UserError for a mode, a stride or heads that cannot be."""
        if self.mode not in MODES:
            raise UserError("bad_value", f"{kind}.mode={self.mode} is not known.", nearest(self.mode, MODES))
        stride = self.stride_of(length)
        if stride > length:
            raise UserError(
                "bad_value",
                f"{kind}.stride={stride} is longer than a row of {length} tokens: "
                "there would be nothing a stride away.",
                f"Take {kind}.stride={near_root(length)}, near the square root of the length, or 0 for that.",
            )
        turns = math.prod(self.turns().values())
        if n_heads is not None and n_heads % turns:
            why = " with ".join(f"{kind}.{key}" for key in self.turns())
            raise UserError(
                "bad_value",
                f"n_heads={n_heads} is not divisible by {turns}, the sets of keys that the heads take in turn ({why}).",
                f"Take n_heads divisible by {turns}.",
            )


@dataclass
class StridedConfig(FactoredConfig):
    """The last `stride` positions, and every `stride`-th one before (Sparse Transformer, section 4.3).

    `stride` 0: the power of two nearest to the square root of the row's length. `mode`: see `MODES`; the window is the
    first factor, the column the second.
    """

    stride: int = 0
    mode: str = "interleaved"

    def in_small(self, scale: float, length: int) -> Self:
        """The stride scaled."""
        return replace(self, stride=_scaled(self.stride_of(length), scale))


@dataclass
class FixedConfig(FactoredConfig):
    """A block of `stride` positions, and of every earlier one a summary of `c` (Sparse Transformer, section 4.3).

    `stride` 0: as for strided attention; `c` 0: a quarter of the stride. `sub_blocks` above 1: as many heads in turn
    take different summaries, counted from the end of the block. `mode`: see `MODES`; the block is the first factor, the
    summaries the second.
    """

    stride: int = 0
    c: int = 0
    sub_blocks: int = 1
    mode: str = "merged"

    def c_of(self, length: int) -> int:
        """The summary width in rows of `length` tokens."""
        return self.c or max(1, self.stride_of(length) // 4)

    def turns(self) -> dict[str, int]:
        """The sub-blocks beside the mode."""
        return {**super().turns(), f"sub_blocks={self.sub_blocks}": self.sub_blocks}

    def check(self, kind: str, n_heads: int | None, length: int) -> None:
        """Raises UserError also for summaries that do not fit into a block."""
        stride, c = self.stride_of(length), self.c_of(length)
        if self.mode in MODES and c * self.sub_blocks > stride <= length:
            several = f"{kind}.sub_blocks={self.sub_blocks} summaries of " if self.sub_blocks > 1 else ""
            raise UserError(
                "bad_value",
                f"{several}{kind}.c={c} positions do not fit into a block of {kind}.stride={stride}.",
                f"Take a smaller {kind}.c.",
            )
        super().check(kind, n_heads, length)

    def in_small(self, scale: float, length: int) -> Self:
        """Stride and summaries scaled, and no more sub-blocks than there is room for."""
        stride = _scaled(self.stride_of(length), scale)
        c = min(_scaled(self.c_of(length), scale), stride)
        return replace(self, stride=stride, c=c, sub_blocks=min(self.sub_blocks, stride // c))


def near_root(length: int) -> int:
    """The power of two nearest to the square root of `length`, by ratio."""
    return int(2 ** round(math.log2(max(1, length)) / 2))


def in_layer(mode: str, index: int) -> tuple[str, ...]:
    """Which factors the heads of a layer take in turn, `merged` being both; `index` of its kind stand before it."""
    if mode == "interleaved":
        return (("first", "second")[index % 2],)
    return ("first", "second") if mode == "heads" else (mode,)


def _scaled(n: int, scale: float) -> int:
    return max(1, round(n * scale))

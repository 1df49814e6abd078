"""LSH attention of other packages, where they are installed: the same heads, rounds and chunk, in the later form.

Both attend across buckets and allow duplicates, the later form of the authors' code: the like-for-like row.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from efftx.ops.lsh_hashing import auto_buckets


@dataclass(frozen=True)
class PeerShape:
    """What a peer is built for; `length` because the number of buckets follows from it."""

    d_model: int
    n_heads: int
    d_head: int
    chunk_len: int
    n_hashes: int
    length: int


@dataclass(frozen=True)
class Peer:
    """`package` as it is installed, how what is measured of it is made, and in a `note` what is not as in our rows."""

    package: str
    make: Callable[..., Any]
    note: str

    @property
    def version(self) -> str | None:
        """The installed version, None where there is none."""
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(self.package)
        return None


class AttentionPeer(Peer):
    """A peer whose layer is made for a `PeerShape`."""

    def why_not(self, shape: PeerShape) -> str | None:
        """Why this peer cannot be measured at `shape`; None where it can."""
        if self.version is None:
            return f"{self.package} is not installed"
        if self.package == "reformer-pytorch" and shape.length % (2 * shape.chunk_len):
            return f"{self.package} takes multiples of {2 * shape.chunk_len} only"
        if self.package == "transformers" and shape.length % shape.chunk_len:
            return f"{self.package} takes multiples of {shape.chunk_len} only"
        try:
            self.make(shape)
        except (ImportError, AttributeError):
            return f"not in this version of {self.package} ({self.version})"
        return None


class _HuggingFace(nn.Module):
    """Its LSH layer with its output projection, without the norm that it puts in front."""

    def __init__(self, shape: PeerShape) -> None:
        super().__init__()
        from transformers import ReformerConfig
        from transformers.models.reformer import modeling_reformer

        buckets = auto_buckets(shape.length, shape.chunk_len)
        config = ReformerConfig(
            attn_layers=["lsh"],
            hidden_size=shape.d_model,
            num_attention_heads=shape.n_heads,
            attention_head_size=shape.d_head,
            lsh_attn_chunk_length=shape.chunk_len,
            lsh_num_chunks_before=1,
            lsh_num_chunks_after=0,
            num_hashes=shape.n_hashes,
            num_buckets=buckets if len(buckets) > 1 else buckets[0],
            is_decoder=True,
            hash_seed=None,
            lsh_attention_probs_dropout_prob=0.0,
            hidden_dropout_prob=0.0,
        )
        self.attention = modeling_reformer.LSHSelfAttention(config)
        self.output = modeling_reformer.ReformerSelfOutput(config)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return cast(Tensor, self.output(self.attention(x_BLD).hidden_states))


def _reformer_pytorch(shape: PeerShape) -> nn.Module:
    from reformer_pytorch import LSHSelfAttention

    layer: Any = LSHSelfAttention(
        shape.d_model,
        heads=shape.n_heads,
        dim_head=shape.d_head,
        bucket_size=shape.chunk_len,
        n_hashes=shape.n_hashes,
        causal=True,
        random_rotations_per_head=True,
    )
    return cast(nn.Module, layer)


PEERS = {
    "transformers": AttentionPeer("transformers", _HuggingFace, "the same number of buckets and factors"),
    "reformer-pytorch": AttentionPeer(
        "reformer-pytorch", _reformer_pytorch, "its own number of buckets, one a chunk where two is the authors' rule"
    ),
}


def make_peer(name: str, shape: PeerShape, device: torch.device) -> nn.Module:
    """The layer of the peer `name` with fresh weights on `device`."""
    layer: nn.Module = PEERS[name].make(shape)
    return layer.to(device)

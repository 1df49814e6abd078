"""What a layer costs: each states it for itself, training by `cost(rows)` and decoding by `weight_reads()`.

`plan`, the benches and decoding sessions add the statements up.

A multiplication with its addition is two FLOPs, and only matrix products are counted, as PyTorch's own counter does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

RANDOM_STATE_BYTES = 5056
"""PyTorch's CPU generator."""
SCORE_BACKWARD, STORED_SCORE_BACKWARD = 2.5, 2.0
"""Backward over forward FLOPs of scores and weighted values: a kernel that stores no scores makes them again in its
backward pass (one product) and forms the gradients of weights, values, queries and keys (four); where plain products
have stored them, as on a CPU under dropout of the weights, only the gradients."""


@dataclass(frozen=True)
class Rows:
    """The rows that a cost is asked for: `batch` of `length` tokens, and of `memory_length` tokens of the encoder.

    `element_bytes` is the size of a number, `device` where they are: cpu or cuda.
    """

    batch: int
    length: int
    memory_length: int = 0
    element_bytes: int = 4
    device: str = "cpu"

    @property
    def bytes_per_feature(self) -> float:
        """Bytes of one number for each token of all rows: a tensor of n features a token has n times as many."""
        return float(self.element_bytes * self.batch * self.length)


@dataclass(frozen=True)
class Work:
    """FLOPs of one row, forward, and what training adds to them, as multiples of them.

    `backward` is the gradients', with what the layer itself makes again for them; `reversed` what a reversible stack
    runs again, `recomputed` a recomputed block. `last` of that gives the layer's output and nothing else: a recomputed
    block that ends with it stops before it, since no gradient reads its output. `gathered` products are small and
    between rows that lie apart: a device reaches less of its peak in them.
    """

    forward: float
    backward: float = 2.0
    reversed: float = 1.0
    recomputed: float = 1.0
    last: float = 0.0
    gathered: bool = False


@dataclass(frozen=True)
class Cost:
    """FLOPs by component, bytes of all rows, and the numbers that are drawn for them at random.

    `saved` by the forward pass for the backward pass, the layer's input not among them; `backward` held besides at the
    fullest moment of the backward pass; `choices` kept by a reversible stack, to run the layer again alike.
    `draws` of the forward pass, and of what the layer itself runs again; `redrawn` where the whole layer is run again,
    and beside those `replayed`, the noise of choices, which a reversible stack keeps and a recomputed block draws anew.
    Dropout draws one for each number, and Gumbel noise, with its two logarithms, takes as long as two.
    """

    work: dict[str, Work] = field(default_factory=dict)
    saved: float = 0.0
    backward: float = 0.0
    choices: int = 0
    draws: float = 0.0
    redrawn: float = 0.0
    replayed: float = 0.0


Held = tuple[float, float]
"""Bytes that a layer saves for its backward pass, and bytes that it holds besides at the fullest moment of that."""


@dataclass(frozen=True)
class Heads:
    """The heads of an attention layer as a pattern needs them: their number and width, and that of the model.

    `stored`: plain products compute the scores, and training keeps them all (`Pattern.stores_scores`).
    """

    n: int
    d_head: int
    d_model: int
    causal: bool
    share_qk: bool
    stored: bool = False

    def width(self, rows: Rows) -> float:
        """Bytes of one tensor of all heads."""
        return rows.bytes_per_feature * self.n * self.d_head


def cost_of(layer: nn.Module, rows: Rows) -> Cost:
    """The layer's own `cost`; no cost for a layer without that method, such as a user's mechanism."""
    stating: Any = getattr(layer, "cost", None)
    return Cost() if stating is None else stating(rows)


def n_parameters(module: nn.Module) -> int:
    """How many numbers its parameters have; those that it shares with itself count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def linear_flops(layer: nn.Linear) -> float:
    """Forward FLOPs a token."""
    return 2.0 * layer.in_features * layer.out_features


def map_flops(layers: Iterable[nn.Module], length: int) -> float:
    """Forward FLOPs a token of linear layers and of those that state theirs by `flops(length)`."""
    stating: Iterable[Any] = layers
    return sum(linear_flops(each) if isinstance(each, nn.Linear) else each.flops(length) for each in stating)


def is_sliced(chunk_len: int, length: int) -> bool:
    """Whether a position-wise layer is computed in more than one slice."""
    return 0 < chunk_len < length


def sliced_bytes(rows: Rows, chunk_len: int, held: float, width: float, n_weights: int) -> float:
    """Held in the backward pass of a position-wise layer in slices: what one slice holds, and the weights' gradients.

    `held` and `width` are bytes of all tokens: what an unsliced pass saves and holds besides, and the layer's input.
    """
    # Gradients of the weights: those of the slice before are there until the next ones are, the larger half first.
    gradients = 1.5 * rows.element_bytes * n_weights
    return chunk_len / rows.length * held + 2 * width + gradients


class Read(NamedTuple):
    """What one token of one row reads for a part of the model: numbers and bytes of weights.

    `chosen`: rows that the token chooses, so that other tokens beside it read others.
    """

    component: str
    weights: int
    bytes: int
    chosen: bool = False


def read_whole(component: str, *parts: nn.Module | Tensor | None) -> Read:
    """All weights of some modules and tensors.

    A module whose numbers hold several weights each says as `n_packed` how many weights it has beyond its numbers.
    """
    tensors: list[Tensor] = []
    n_packed = 0
    for part in parts:
        if isinstance(part, nn.Module):
            tensors += [*part.parameters(), *part.buffers()]
            n_packed += sum(getattr(module, "n_packed", 0) for module in part.modules())
        elif part is not None:
            tensors.append(part)
    return Read(component, n_packed + sum(t.numel() for t in tensors), sum(t.nbytes for t in tensors))


def reads_of(layer: nn.Module) -> list[Read]:
    """The layer's own `weight_reads`; for a layer without that method all of its weights."""
    stating: Any = getattr(layer, "weight_reads", None)
    return [read_whole("everything else", layer)] if stating is None else stating()


def sum_by_component(reads: Iterable[Read]) -> dict[str, Read]:
    """The reads of one token added up by component; those of nothing are left out."""
    total: dict[str, Read] = {}
    for read in reads:
        before = total.get(read.component, Read(read.component, 0, 0))
        if read.weights:
            total[read.component] = Read(read.component, before.weights + read.weights, before.bytes + read.bytes)
    return total

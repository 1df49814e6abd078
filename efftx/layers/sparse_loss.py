"""The sparse loss layer: logits over the vocabulary from a multiplicative layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from efftx.errors import UserError
from efftx.layers.multiplicative import Multiplicative, MultiplicativeStepper


@dataclass
class SparseLossConfig:
    """`S` modules of the layer to the vocabulary, 0 for a dense one (authors: 4, 8 in the largest model)."""

    S: int = 0


def check_sparse_loss(config: SparseLossConfig, vocab_size: int) -> None:
    """Raises UserError for an S below 1 and for one that leaves a module without any token of the vocabulary."""
    if config.S < 1:
        raise UserError("bad_value", f"sparse_loss.S={config.S} must be at least 1, or 0 for a dense loss layer.")
    d_module = -(-vocab_size // config.S)
    if (config.S - 1) * d_module >= vocab_size:
        n_modules = -(-vocab_size // d_module)
        raise UserError(
            "bad_value",
            f"sparse_loss.S={config.S} modules of {d_module} tokens each are more than a vocabulary of {vocab_size} "
            "fills.",
            f"sparse_loss.S={n_modules} fills all of its modules.",
        )


class SparseLoss(nn.Module):
    """Logits over the vocabulary from S modules ("Sparse is Enough", section 3.3; authors' FactoredDense).

    The vocabulary is counted up to a multiple of S and the surplus left out. Raises UserError for a useless S.
    """

    def __init__(self, config: SparseLossConfig, width: int, vocab_size: int) -> None:
        super().__init__()
        check_sparse_loss(config, vocab_size)
        self.layer = Multiplicative(width, vocab_size, config.S, round_up=True)

    def forward(self, h_BLE: Tensor) -> Tensor:
        """(.., width) -> logits (.., vocabulary)."""
        logits: Tensor = self.layer(h_BLE)
        return logits

    def stepper(self) -> MultiplicativeStepper:
        """The layer for one token at a time."""
        return self.layer.stepper()

"""The sparse loss layer: logits over the vocabulary from a multiplicative layer."""

from __future__ import annotations

from torch import Tensor, nn

from efftx.layers.multiplicative import Multiplicative
from efftx.layers.settings import SparseLossConfig, check_sparse_loss


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

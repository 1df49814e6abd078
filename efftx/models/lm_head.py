"""From a model's last vectors to logits and losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from efftx.layers.cost import Cost, Rows, Work, is_sliced, n_parameters
from efftx.layers.initialize import LAYER_NORM_EPS, glorot_
from efftx.layers.sparse_loss import SparseLoss, SparseLossConfig
from efftx.models.embedding import TokenEmbedding
from efftx.ops.chunking import chunked


class LMHead(nn.Module):
    """LayerNorm, dropout, and the layer to the vocabulary.

    That layer is linear, its matrix perhaps the embedding's, or a sparse loss layer where its config says so.
    """

    def __init__(
        self,
        width: int,
        vocab_size: int,
        dropout: float,
        *,
        sparse_loss: SparseLossConfig,
        label_smoothing: float = 0.0,
        zero: bool = False,
        tied_to: TokenEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.linear = SparseLoss(sparse_loss, width, vocab_size) if sparse_loss.S else nn.Linear(width, vocab_size)
        self.vocab_size, self.dropout, self.label_smoothing = vocab_size, dropout, label_smoothing
        if tied_to is not None:
            self.linear.weight = tied_to.weight
        self.tied, self.zero = tied_to is not None, zero

    def reset_parameters(self) -> None:
        """Glorot-uniform weight, or a zero one, where it is the head's own, zero bias; a sparse loss starts itself."""
        if not isinstance(self.linear, nn.Linear):
            return
        if self.tied:
            nn.init.zeros_(self.linear.bias)
        else:
            glorot_(self.linear)
            if self.zero:
                nn.init.zeros_(self.linear.weight)

    def forward(self, h_BLE: Tensor) -> Tensor:
        """(B, L, width) -> logits (B, L, vocabulary)."""
        logits: Tensor = self.linear(F.dropout(self.norm(h_BLE), self.dropout, self.training))
        return logits

    def losses(
        self, h_BLE: Tensor, targets_BL: Tensor, chunk_len: int = 0, *, hits: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Cross entropy in nats and whether the most likely token is right, (B, L) float and bool.

        With `chunk_len` the logits of so many positions exist at a time; without `hits` the second is None, which
        spares a pass over the logits. In training the target has 1 - `label_smoothing` of the probability that is
        learned, and all tokens share the rest alike (Szegedy et al. 2016).
        """
        smoothing = self.label_smoothing if self.training else 0.0
        if not is_sliced(chunk_len, targets_BL.shape[1]):
            results = _losses(self(h_BLE), targets_BL, hits, smoothing)
        else:

            def one_slice(parameters: Mapping[str, Tensor], h: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
                return _losses(functional_call(self, dict(parameters), (h,)), targets, hits, smoothing)

            results = chunked(one_slice, dict(self.named_parameters()), (h_BLE, targets_BL), chunk_len)
        return (results[0], results[1]) if hits else (results[0], None)

    def logits_bytes(self, rows: Rows, chunk_len: int = 0) -> int:
        """Bytes of the logits that exist at one time: of all positions, or of one slice of the loss."""
        at_a_time = chunk_len if is_sliced(chunk_len, rows.length) else rows.length
        return rows.element_bytes * rows.batch * at_a_time * self.vocab_size

    def cost(self, rows: Rows, chunk_len: int = 0) -> Cost:
        """The product, or the sparse layer's factors multiplied out, and the losses; slices of them are run again."""
        d = self.norm.normalized_shape[0]
        sliced = is_sliced(chunk_len, rows.length)
        work = {"head": Work(rows.length * 2.0 * d * self.vocab_size, 2.0 + sliced)}
        width, logits = rows.bytes_per_feature * d, float(self.logits_bytes(rows, chunk_len))
        matrix = float(rows.element_bytes * d * self.vocab_size) if isinstance(self.linear, SparseLoss) else 0.0
        draws = float(rows.batch * rows.length * d * (self.dropout > 0) * (1 + sliced))
        if sliced:
            # A slice's own gradients of the weights live until the next slice's are there, beside the sum.
            gradients = float(rows.element_bytes * n_parameters(self.linear))
            fullest = max(3 * logits + gradients, logits + 2 * gradients) + gradients * self.tied
            held = width * (2 + 3 * chunk_len / rows.length) + fullest + 3 * matrix
            return Cost(work, 0.0, held, draws=draws)
        saved = width * (2 if self.dropout > 0 else 1) + logits + matrix
        return Cost(work, saved, 2.0 * logits, draws=draws)


def _losses(logits_BLV: Tensor, targets_BL: Tensor, hits: bool, smoothing: float) -> tuple[Tensor, ...]:
    # Half precision is too coarse for a log-softmax over a vocabulary.
    logits = logits_BLV.to(torch.promote_types(logits_BLV.dtype, torch.float32))
    flat, targets = logits.flatten(0, 1), targets_BL.flatten()
    nll = F.cross_entropy(flat, targets, reduction="none", label_smoothing=smoothing)
    nll = nll.view_as(targets_BL)
    return (nll, logits_BLV.argmax(-1) == targets_BL) if hits else (nll,)

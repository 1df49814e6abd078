"""Label smoothing: the written-out loss in training, in slices and sparse too; the plain one in evaluation."""

from __future__ import annotations

import pytest
import torch

from efftx.layers.settings import SparseLossConfig
from efftx.models.lm_head import LMHead

EPSILON, WIDTH, VOCABULARY = 0.2, 8, 12


def head(smoothing: float, S: int = 0) -> LMHead:
    torch.manual_seed(0)
    made = LMHead(WIDTH, VOCABULARY, 0.0, sparse_loss=SparseLossConfig(S), label_smoothing=smoothing).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("chunk_len", [0, 3])
@pytest.mark.parametrize("S", [0, 4])
def test_training_learns_the_mixture_and_evaluation_measures_the_target(chunk_len: int, S: int) -> None:
    smoothed = head(EPSILON, S)
    h = torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(VOCABULARY, (2, 7))
    log_p = smoothed(h).log_softmax(-1)
    own = -log_p.gather(-1, targets[..., None])[..., 0]
    expected = (1 - EPSILON) * own - EPSILON * log_p.mean(-1)

    found, _ = smoothed.losses(h, targets, chunk_len, hits=False)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss.sum(), h, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)

    torch.testing.assert_close(smoothed.eval().losses(h, targets, chunk_len)[0], own)


def test_without_it_the_loss_is_the_very_same() -> None:
    h, targets = torch.randn(2, 7, WIDTH, dtype=torch.float64), torch.randint(VOCABULARY, (2, 7))
    plain = head(0.0)
    assert torch.equal(plain.losses(h, targets)[0], plain.eval().losses(h, targets)[0])

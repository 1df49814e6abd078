"""The sparse loss layer gives the authors' logits, loss and gradients, for any vocabulary that fills its modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from efftx.errors import UserError
from efftx.layers.sparse_loss import SparseLoss, SparseLossConfig, check_sparse_loss
from tests.tolerances import GOLDEN, assert_close


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_gives_the_authors_logits_loss_and_gradients(golden, dtype: torch.dtype) -> None:
    arrays = golden("sparse_loss_a", dtype)
    layer = SparseLoss(SparseLossConfig(S=4), 32, 40).to(dtype)
    layer.layer.load_state_dict({key: arrays[f"w.{key}"] for key in ("gate", "proj", "bias")})
    x, weights, targets = arrays["x"].requires_grad_(), arrays["loss_weights"], arrays["targets"].long()
    logits = layer(x)
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(weights)
    loss = (nll * weights).sum() / weights.sum()
    loss.backward()
    right = ((logits.argmax(-1) == targets) * weights).sum() / weights.sum()
    assert_close(logits, arrays["logits"], GOLDEN, "logits")
    assert_close(loss, arrays["loss"], GOLDEN, "loss")
    assert_close(right, arrays["accuracy"], GOLDEN, "accuracy")
    assert_close(x.grad, arrays["grad_x"], GOLDEN, "grad_x")
    for key, parameter in layer.layer.named_parameters():
        assert_close(parameter.grad, arrays[f"grad_w.{key}"], GOLDEN, key)


def test_a_vocabulary_of_32000_takes_a_quarter_of_the_dense_weights() -> None:
    with torch.device("meta"):
        layer = SparseLoss(SparseLossConfig(S=4), 1024, 32_000)
    assert sum(p.numel() for p in layer.parameters()) == 1024 * (4 + 8_000) + 32_000


@settings(max_examples=60)
@given(vocab_size=st.integers(1, 60), S=st.integers(1, 12))
def test_every_weight_reaches_a_token_or_the_layer_is_refused_with_an_s_that_is_not(vocab_size: int, S: int) -> None:
    try:
        check_sparse_loss(SparseLossConfig(S=S), vocab_size)
    except UserError as error:
        S = int(error.hint.split("=")[1].split()[0])
    torch.manual_seed(0)
    layer = SparseLoss(SparseLossConfig(S=S), 5, vocab_size)
    layer.layer.reset_parameters()
    logits = layer(torch.randn(2, 3, 5))
    assert logits.shape == (2, 3, vocab_size)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.all() for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("S", "vocab_size", "says"),
    [(0, 40, "sparse_loss.S=0 must be at least 1"), (-1, 40, "at least 1"), (4, 5, "4 modules of 2 tokens each")],
)
def test_a_useless_number_of_modules_is_refused(S: int, vocab_size: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        SparseLoss(SparseLossConfig(S=S), 8, vocab_size)

"""The layer in attention's place that adds nothing."""

from __future__ import annotations

import pytest
import torch

from efftx.errors import UserError
from efftx.layers.cost import Cost, Rows
from efftx.layers.identity import NoAttention


def test_it_adds_nothing_and_passes_a_gradient_of_zero() -> None:
    x = torch.randn(2, 5, 8)
    x[0, 0, 0] = torch.nan
    x.requires_grad_()
    y = NoAttention()(x)
    assert torch.equal(y, torch.zeros(2, 5, 8))
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(2, 5, 8))


@pytest.mark.parametrize("reversible", ["true", "false"])
@pytest.mark.parametrize("attention", ["[local,identity]", "[identity]"])
def test_a_model_with_it_is_trained_and_every_weight_has_a_gradient(
    build, tokens, attention: str, reversible: str
) -> None:
    model = build("model=reformer", f"attention={attention}", f"reversible.enabled={reversible}").train()
    model(tokens(), losses=True)[0].mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_it_costs_and_keeps_nothing() -> None:
    layer = NoAttention()
    assert layer.cost(Rows(2, 64)) == Cost()
    assert not list(layer.parameters())
    assert not layer.weight_reads()


@pytest.mark.parametrize(
    "words",
    [
        ["model=transformer"],
        ["model=reformer"],
        ["model=sparse_transformer"],
        ["model=reformer", "reversible.enabled=true", "init.residual=depth"],
        ["model=transformer", "recompute.enabled=true"],
    ],
)
def test_a_model_without_any_attention_looks_at_no_other_token(build, tokens, words: list[str]) -> None:
    model = build(*words, "attention=[identity]", "init.zero_logits=false").eval()
    x = tokens()
    other = x.clone()
    other[:, 0] = (x[:, 0] + 1) % 5
    before, after = model(x), model(other)
    # A token's logits go by itself alone, and here the first one's alone change.
    assert torch.equal(before[:, 2:], after[:, 2:])
    assert not torch.equal(before[:, :2], after[:, :2])


def test_keys_of_attention_that_no_layer_has_are_refused(configure) -> None:
    with pytest.raises(UserError, match="no layer's attention is lsh"):
        configure("model=reformer", "attention=[identity]", "lsh.n_hashes=4")

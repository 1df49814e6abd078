"""The encoder-decoder and Terraformer: what each may read, padding, reversibility, and the forms written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import efftx.models.block as block_module
from efftx.models.encoder_decoder import EncoderDecoder
from efftx.ops import reversible
from efftx.ops.concatenation import join_after_naive
from efftx.ops.recompute_state import RecomputeState
from tests.tolerances import REBUILT_GRADIENT, ROUNDING, assert_close

SMALL = ("data=stdlib", "data.length=16", "data.target_length=12", "n_layers=2", "n_encoder_layers=2")
DENSE = ("sparse_ff.N=0", "sparse_qkv.S=0")
FORMS = {
    "dense": ("model=scaling", *DENSE),
    "sparse": ("model=scaling",),
    "sparse query": ("model=scaling", "sparse_qkv.cross=query", "sparse_loss.S=4", "sru.n_layers=1", "sru.d=8"),
    "reversible": ("model=scaling", "reversible.enabled=true"),
    "terraformer": ("model=terraformer",),
    "terraformer, merged encoder": ("model=terraformer", "reversible.encoder=merged"),
    "terraformer, full": ("model=terraformer", "attention=[full]", "chunking.ff=0"),
    "terraformer, one stream": ("model=terraformer", "reversible.enabled=false"),
    "terraformer, dense": ("model=terraformer", *DENSE, "sparse_loss.S=0", "sru.n_layers=0"),
}
ALL = pytest.mark.parametrize("name", FORMS)
WITHOUT_LSH = pytest.mark.parametrize("name", [n for n in FORMS if "terraformer" not in n or "full" in n])


@pytest.fixture
def form(build) -> Callable[..., EncoderDecoder]:
    return lambda name, *more, **kind: build(*SMALL, *FORMS[name], *more, **kind)


def pair(batch: int = 3, n_inputs: int = 16, n_targets: int = 12) -> tuple[Tensor, Tensor]:
    """Targets and inputs; the rows' inputs end after 16, 9 and 1 tokens."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 23, (batch, n_targets), generator=generator)
    inputs = torch.randint(1, 23, (batch, n_inputs), generator=generator)
    for row, n in zip(inputs, (n_inputs, 9, 1), strict=False):
        row[n:] = 0
    return tokens, inputs


def held(model: EncoderDecoder) -> dict[str, list[list[RecomputeState]]]:
    return {
        "states": [[RecomputeState() for _ in block.children()] for block in model.blocks],
        "encoder_states": [[RecomputeState() for _ in block.children()] for block in model.encoder_blocks],
    }


@WITHOUT_LSH
def test_a_target_is_predicted_from_the_input_and_the_targets_before_it_alone(form, name: str) -> None:
    model = form(name).eval()
    tokens, inputs = pair()
    other = tokens.clone()
    other[:, 7:] = 22
    assert_close(model(other, inputs)[:, :8], model(tokens, inputs)[:, :8], ROUNDING)
    assert not torch.allclose(model(other, inputs)[:, 8:], model(tokens, inputs)[:, 8:])
    changed = inputs.clone()
    changed[:, 0] = 22
    assert not torch.allclose(model(tokens, changed)[:, 0], model(tokens, inputs)[:, 0])


@WITHOUT_LSH
def test_more_padding_changes_nothing(form, name: str) -> None:
    model = form(name, "data.length=20").eval()
    tokens, inputs = pair()
    assert_close(model(tokens, F.pad(inputs, (0, 4))), model(tokens, inputs), ROUNDING)
    alone = model(tokens[1:2], inputs[1:2, :9])
    assert_close(alone, model(tokens, inputs)[1:2], ROUNDING)


@ALL
def test_every_row_is_finite_and_every_parameter_learns(form, name: str) -> None:
    torch.manual_seed(0)
    model = form(name, "dropout=0.1", "sparse_ff.quant_prob=0") if "dense" not in name else form(name, "dropout=0.1")
    nll, correct = model(*pair(), losses=True)
    assert nll.shape == correct.shape == (3, 12)
    nll.sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), f"{parameter_name} has the gradient 0"


@pytest.mark.parametrize("name", ["reversible", "terraformer", "terraformer, merged encoder", "terraformer, full"])
def test_reversible_stacks_have_the_gradients_of_stored_activations(
    form, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = form(name, "dropout=0.1", "attention_dropout=0.1", "n_layers=4", "n_encoder_layers=4")

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(5)
        nll, _ = model(*pair(), losses=True)
        nll.mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()} | {"loss": nll.detach()}

    found = gradients()
    monkeypatch.setattr(
        block_module,
        "reversible_block",
        lambda sublayers, a, b, tape, states=None: reversible.reversible_block_naive(sublayers, a, b, states),
    )
    for parameter, expected in gradients().items():
        if parameter.endswith(".k.bias"):
            continue  # what is added to all keys alike moves no softmax: its gradient is rounding
        assert_close(found[parameter], expected, REBUILT_GRADIENT, parameter)


def test_the_ordinary_form_written_out(form) -> None:
    model = form("dense").eval()
    tokens, inputs = pair()
    x = model.embedding(inputs) + model.encoder_positions(16)
    for block in model.encoder_blocks:
        x = x + block.attention.core(block.attention.norm(x), None, inputs != 0)
        x = x + block.feedforward(x)
    memory = model.junction.norm(x)
    y = model.embedding(F.pad(tokens, (1, 0))[:, :-1]) + model.positions(12)
    for block in model.blocks:
        y = y + block.attention(y)
        y = y + block.cross_attention.core(block.cross_attention.norm(y), memory, inputs != 0)
        y = y + block.feedforward(y)
    assert_close(model(tokens, inputs), model.head(y), ROUNDING)


def test_terraformers_form_written_out(form) -> None:
    model = form("terraformer, full").eval()
    tokens, inputs = pair()
    a = b = model.embedding(inputs) + model.encoder_positions(16)
    for block in model.encoder_blocks:
        a, b = b, a + block.attention.core(block.attention.norm(b), None, inputs != 0)
        a, b = b, a + block.feedforward(b)
    x = model.embedding(F.pad(tokens, (1, 0))[:, :-1]) + model.positions(12)
    n = (inputs != 0).sum(1)
    a, b = join_after_naive(a, x, n), join_after_naive(b, x, n)
    for block in model.blocks:
        for branch in (block.attention, block.attention_2, block.feedforward):
            a, b = b, a + branch(b)
    mean = (a + b) / 2
    own = torch.stack([row[k : k + 12] for row, k in zip(mean, n.tolist(), strict=True)])
    assert_close(model(tokens, inputs), model.head(own), ROUNDING)


@ALL
def test_slices_of_the_loss_change_nothing(form, name: str) -> None:
    model = form(name).eval()
    states = held(model)
    whole = model(*pair(), losses=True, **states)
    model.loss_chunk_len = 5
    sliced = model(*pair(), losses=True, **states)
    assert_close(sliced[0], whole[0], ROUNDING)
    assert torch.equal(sliced[1], whole[1])

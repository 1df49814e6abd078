"""The sparse feed-forward layer chooses once: in slices, inside a reversible block, and in both at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from efftx.layers import sparse_ff
from efftx.layers.sparse_ff import SparseFF
from efftx.ops.attention import full_attention, unit_key
from efftx.ops.recompute_state import RecomputeState
from efftx.ops.reversible import Tape, reversible_block, reversible_block_naive
from efftx.ops.sparse_ff import choose_units
from tests.layers.test_sparse_ff import assert_same, example, layer, load
from tests.ops.sparse_ff_forms import LAYOUTS
from tests.tolerances import GOLDEN, REBUILT_GRADIENT, assert_close, relative_error


@pytest.mark.parametrize("chunk_len", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_reversible_block_around_it_is_the_authors(golden, dtype: torch.dtype, chunk_len: int) -> None:
    arrays = golden("reversible_block_shared_sparseff", dtype)
    own = layer(8, 32, 64, chunk_len=chunk_len, dtype=dtype).eval()
    load(own, arrays, "w.ff.")
    attention_weights = {name: arrays[f"w.attn.{name}"].requires_grad_() for name in ("w_qk", "w_v", "w_o")}
    norms = {
        branch: {f"ln.{part}": arrays[f"w.{branch}.ln.{part}"].requires_grad_() for part in ("scale", "bias")}
        for branch in ("attn", "ff")
    }

    def norm(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], parameters["ln.scale"], parameters["ln.bias"], eps=1e-6)

    def attention(parameters: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
        qk, v = (torch.einsum("blD,hDd->bhld", norm(parameters, x), parameters[name]) for name in ("w_qk", "w_v"))
        out = full_attention(qk, unit_key(qk), v, scale=1.0, exclude_self=True)
        return torch.einsum("bhlv,hvD->blD", out, parameters["w_o"])

    def feedforward(parameters: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
        weights = {name: tensor for name, tensor in parameters.items() if not name.startswith("ln.")}
        y: Tensor = functional_call(own, weights, (norm(parameters, x), state))
        return y

    x1, x2 = (arrays[name].requires_grad_() for name in ("x1", "x2"))
    sublayers = [
        (attention, {**norms["attn"], **attention_weights}),
        (feedforward, {**norms["ff"], **dict(own.named_parameters())}),
    ]
    tape = Tape()
    y1, y2 = reversible_block(sublayers, x1, x2, tape)
    assert_close(y1, arrays["y1"], GOLDEN, "y1")
    assert_close(y2, arrays["y2"], GOLDEN, "y2")
    rebuilt: list[tuple[Tensor, Tensor]] = []
    undo = tape.undo
    tape.undo = lambda pair: (rebuilt.append(pair), undo(pair))[1]  # type: ignore[method-assign]
    torch.autograd.backward([y1, y2], [arrays["grad_y1"], arrays["grad_y2"]])
    for name, tensor in zip(("x1", "x2"), rebuilt[0], strict=True):
        assert_close(tensor, arrays[f"recovered_{name}"], GOLDEN, f"recovered {name}")
    leaves = {"x1": x1, "x2": x2}
    leaves |= {f"w.{branch}.{name}": tensor for branch, own in norms.items() for name, tensor in own.items()}
    leaves |= {f"w.attn.{name}": tensor for name, tensor in attention_weights.items()}
    for name, leaf in leaves.items():
        assert_close(leaf.grad, arrays[f"grad_{name}"], GOLDEN, name)
    for name, (parameter, layout) in LAYOUTS.items():
        weight = own.get_parameter(parameter)
        grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert_close(grad, layout(arrays[f"grad_w.ff.{name}"]), GOLDEN, name)


def by_slices(own: SparseFF, x: Tensor, chunk_len: int) -> Tensor:
    """A chunked training step under ordinary automatic differentiation: one coin, then each slice by itself."""
    hard = torch.rand(()) < own.config.quant_prob
    return torch.cat([own(piece, RecomputeState({"hard": hard})) for piece in x.split(chunk_len, dim=1)], dim=1)


@pytest.mark.parametrize("quant_prob", [0.0, 1.0])
def test_noise_and_dropout_of_the_backward_pass_are_those_of_the_forward_pass(quant_prob: float) -> None:
    keys = {"dropout": 0.3, "quant_prob": quant_prob, "temperature": 1.0, "multiply_by_controller": True}
    x = example().requires_grad_()
    results = []
    for chunk_len in (0, 4):
        own = layer(chunk_len=chunk_len, **keys)
        torch.manual_seed(3)
        y = own(x) if chunk_len else by_slices(own, x, 4)
        torch.rand(9)
        grads = torch.autograd.grad(y.square().sum(), [x, *own.parameters()])
        results.append(dict(enumerate([y.detach(), *grads])))
    assert_same(results[1], results[0])


@contextmanager
def counted_choices(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Lists the inputs of every choice that is made and not played back."""
    made: list[Tensor] = []

    def choose(logits: Tensor, *noise: object) -> Tensor:
        made.append(logits)
        return choose_units(logits, *noise)

    with monkeypatch.context() as patch:
        patch.setattr(sparse_ff, "choose_units", choose)
        yield made


BLOCKS, CHUNK = 3, 4


def stack(chunk_len: int, dtype: torch.dtype) -> list[list[SparseFF]]:
    """Blocks of two noisy layers with dropout each."""
    keys = {"dropout": 0.2, "quant_prob": 0.5, "temperature": 1.0, "chunk_len": chunk_len, "dtype": dtype}
    return [[layer(seed=2 * i + half, **keys) for half in range(2)] for i in range(BLOCKS)]


def reversible_output_and_gradients(x: Tensor, *, reversible: bool, chunk_len: int) -> dict[str, Tensor]:
    """With slices, the stored stack runs each slice of a layer by itself, without `chunked`."""
    layers = stack(chunk_len if reversible else 0, x.dtype)

    def as_function(own: SparseFF):
        def call(parameters: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
            h = F.layer_norm(x, x.shape[-1:])
            if chunk_len and not reversible:
                return by_slices(own, h, chunk_len)
            y: Tensor = functional_call(own, dict(parameters), (h, state))
            return y

        return call

    torch.manual_seed(8)
    a = b = x = x.detach().requires_grad_()
    tape = Tape()
    for pair in layers:
        sublayers = [(as_function(own), dict(own.named_parameters())) for own in pair]
        a, b = reversible_block(sublayers, a, b, tape) if reversible else reversible_block_naive(sublayers, a, b)
    names = [
        f"{i}.{half}.{n}" for i in range(BLOCKS) for half in range(2) for n, _ in layers[i][half].named_parameters()
    ]
    parameters = [p for pair in layers for own in pair for p in own.parameters()]
    out = torch.cat([a, b], dim=-1)
    torch.rand(5)
    grads = torch.autograd.grad(out.square().sum(), [x, *parameters])
    return {"y": out.detach(), **dict(zip(["x", *names], grads, strict=True))}


@pytest.mark.parametrize("chunk_len", [0, CHUNK])
def test_a_reversible_stack_of_noisy_layers_has_the_gradients_of_the_stored_one(
    monkeypatch: pytest.MonkeyPatch, chunk_len: int
) -> None:
    x = example()
    with counted_choices(monkeypatch) as made:
        actual = reversible_output_and_gradients(x, reversible=True, chunk_len=chunk_len)
    assert len(made) == 2 * BLOCKS * (math.ceil(11 / CHUNK) if chunk_len else 1)
    expected = reversible_output_and_gradients(x, reversible=False, chunk_len=chunk_len)
    assert torch.equal(actual["y"], expected["y"])
    for name, grad in expected.items():
        assert relative_error(actual[name], grad) <= REBUILT_GRADIENT[x.dtype], name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("chunk_len", [0, CHUNK])
def test_inputs_rebuilt_with_errors_flip_no_choice(
    monkeypatch: pytest.MonkeyPatch, chunk_len: int, training: bool
) -> None:
    """The error is far larger than rounding, so that units chosen anew would be others."""
    own = layer(chunk_len=chunk_len, quant_prob=1.0, temperature=0.5, dropout=0.2).train(training)
    seen: list[Tensor] = []
    used: list[Tensor] = []
    form = sparse_ff.training_mask if training else sparse_ff.sparse_ff_masked

    def watched(*arguments: Tensor) -> Tensor:
        used.append(arguments[1] if training else arguments[2])
        return form(*arguments)

    def call(parameters: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
        seen.append(x.detach())
        y: Tensor = functional_call(own, dict(parameters), (x, state))
        return y

    tape, x = Tape(), example().requires_grad_()
    pop = tape.pop
    noise = 0.3 * torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    tape.pop = lambda depth: tuple(y + noise for y in pop(depth))  # type: ignore[assignment, method-assign]
    with monkeypatch.context() as patch:
        patch.setattr(sparse_ff, form.__name__, watched)
        a, b = reversible_block([(call, dict(own.named_parameters()))], x, x, tape)
        (a.sum() + b.sum()).backward()
    first, *later = torch.cat(used, dim=1).split(11, dim=1)
    assert len(later) == (2 if chunk_len else 1)
    for again in later:
        assert torch.equal(again, first)
    fresh = [own.choices(x)[0] for x in seen]
    assert float((fresh[0] != fresh[1]).double().mean()) > 0.05


def test_what_is_kept_for_replaying_is_a_byte_a_block() -> None:
    own, state = layer(64, 32, 1024), RecomputeState()
    own(example(20, 32), state)
    assert state.choices["units"].dtype == torch.uint8
    assert state.nbytes() == 2 * 20 * 16 + 1

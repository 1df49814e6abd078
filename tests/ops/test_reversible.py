"""Gradients from rebuilt inputs are those of ordinary automatic differentiation, and no activation is kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from efftx.ops.attention import full_attention, unit_key
from efftx.ops.lsh import lsh_attention
from efftx.ops.lsh_hashing import hash_vectors, make_rotations
from efftx.ops.recompute_state import RecomputeState
from efftx.ops.reversible import Tape, reversible_block, reversible_block_naive
from tests.tolerances import GOLDEN, REBUILT_GRADIENT, assert_close, relative_error

WIDTH, HEADS, N_BUCKETS, CHUNK = 12, 2, 4, 8
Parameters = dict[str, Tensor]
Stack = list[list[tuple[object, Parameters]]]


def heads(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight).unflatten(-1, (HEADS, -1)).transpose(1, 2)


def lsh_branch(parameters: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
    """Hashes with fresh rotations, attends in buckets, drops out: everything that must be replayed."""
    h = F.layer_norm(x, (WIDTH,), parameters["gain"], parameters["shift"])
    qk, v = heads(h, parameters["qk"]), heads(h, parameters["v"])

    def buckets() -> Tensor:
        options = {"device": x.device, "dtype": x.dtype}
        rotations = make_rotations((x.shape[0], HEADS, qk.shape[-1]), 2, [N_BUCKETS], **options)
        return hash_vectors(qk, rotations, [N_BUCKETS])

    bucket = state.choose("buckets", buckets)
    out = lsh_attention(qk, v, bucket, n_buckets_total=N_BUCKETS, chunk_len=CHUNK)
    return F.dropout(F.linear(out.transpose(1, 2).flatten(2), parameters["o"]), 0.1)


def feedforward_branch(parameters: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
    h = F.layer_norm(x, (WIDTH,), parameters["gain"], parameters["shift"])
    return F.dropout(F.linear(F.gelu(F.linear(h, parameters["w1"])), parameters["w2"]), 0.1)


SHAPES = {
    lsh_branch: {"qk": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "o": (WIDTH, WIDTH)},
    feedforward_branch: {"w1": (2 * WIDTH, WIDTH), "w2": (WIDTH, 2 * WIDTH)},
}


def make_stack(kinds: Sequence[object], n_blocks: int, dtype: torch.dtype) -> Stack:
    generator = torch.Generator().manual_seed(4)

    def start(shape: tuple[int, ...]) -> Tensor:
        weight = torch.randn(shape, generator=generator, dtype=torch.float64) * shape[-1] ** -0.5
        return weight.to(dtype).requires_grad_()

    def parameters(kind: object) -> Parameters:
        matrices = {name: start(shape) for name, shape in SHAPES[kind].items()}
        gain = (1 + 0.1 * torch.randn(WIDTH, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
        return {**matrices, "gain": gain, "shift": start((WIDTH,))}

    return [[(kind, parameters(kind)) for kind in kinds] for _ in range(n_blocks)]


def run(stack: Stack, x: Tensor, *, reversible: bool) -> tuple[Tensor, Tensor]:
    a = b = x
    tape = Tape()
    for sublayers in stack:
        a, b = reversible_block(sublayers, a, b, tape) if reversible else reversible_block_naive(sublayers, a, b)
    return a, b


def output_and_gradients(stack: Stack, x: Tensor, *, reversible: bool) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(8)
    x = x.detach().requires_grad_()
    named = {
        f"block {i + 1} {kind.__name__} {name}": tensor
        for i, sublayers in enumerate(stack)
        for kind, parameters in sublayers
        for name, tensor in parameters.items()
    }
    out = torch.cat(run(stack, x, reversible=reversible), dim=-1)
    cotangent = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    grads = torch.autograd.grad(out, [x, *named.values()], cotangent)
    return out.detach(), dict(zip(["x", *named], grads, strict=True))


def example(dtype: torch.dtype, length: int = 21) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(2, length, WIDTH, dtype=torch.float64, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_twelve_layers_with_hashing_and_dropout_have_the_gradients_of_the_stored_stack(dtype: torch.dtype) -> None:
    stack = make_stack([lsh_branch, feedforward_branch], 12, dtype)
    out, grads = output_and_gradients(stack, example(dtype), reversible=True)
    expected_out, expected = output_and_gradients(stack, example(dtype), reversible=False)
    assert torch.equal(out, expected_out)
    errors = {name: relative_error(grads[name], expected[name]) for name in expected}
    depths = {i: max(e for name, e in errors.items() if name.startswith(f"block {i} ")) for i in range(1, 13)}
    listed = ", ".join(f"{depth}: {error:.1e}" for depth, error in depths.items())
    assert max(errors.values()) <= REBUILT_GRADIENT[dtype], f"largest relative error of a gradient by depth: {listed}"


@pytest.mark.parametrize(
    "kinds", [[lsh_branch], [lsh_branch, feedforward_branch, lsh_branch]], ids=["one sub-layer", "three sub-layers"]
)
def test_a_block_may_have_any_number_of_sublayers(kinds: Sequence[object]) -> None:
    stack = make_stack(kinds, 3, torch.float64)
    out, grads = output_and_gradients(stack, example(torch.float64), reversible=True)
    expected_out, expected = output_and_gradients(stack, example(torch.float64), reversible=False)
    assert torch.equal(out, expected_out)
    for name, grad in expected.items():
        assert_close(grads[name], grad, REBUILT_GRADIENT, name)


def test_two_sublayers_are_the_papers_equations() -> None:
    def double(parameters: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
        return 2 * x

    def square(parameters: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
        return x * x

    x1, x2 = torch.tensor([[[1.0]]]), torch.tensor([[[3.0]]])
    y1, y2 = reversible_block([(double, {}), (square, {})], x1, x2, Tape())
    assert y1.item() == 1 + 2 * 3
    assert y2.item() == 3 + y1.item() ** 2


def test_parameters_that_need_no_gradient_get_none() -> None:
    ((attention, feedforward),) = make_stack([lsh_branch, feedforward_branch], 1, torch.float64)
    feedforward[1]["w1"].requires_grad_(False)
    a, b = reversible_block([attention, feedforward], example(torch.float64), example(torch.float64), Tape())
    (a.sum() + b.square().sum()).backward()
    assert feedforward[1]["w1"].grad is None
    assert feedforward[1]["w2"].grad is not None
    assert attention[1]["qk"].grad is not None


def test_autocast_of_the_forward_pass_holds_in_the_backward_pass() -> None:
    seen: list[torch.dtype] = []

    def watched(parameters: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
        out = F.linear(x, parameters["w"])
        seen.append(out.dtype)
        return out

    weight, x = torch.eye(WIDTH).requires_grad_(), example(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = reversible_block([(watched, {"w": weight})], x, x, Tape())
    (a + b).sum().backward()
    reversible_block([(watched, {"w": weight})], x, x, Tape())
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_running_backward_twice_is_refused() -> None:
    stack = make_stack([feedforward_branch], 2, torch.float64)
    a, b = run(stack, example(torch.float64), reversible=True)
    loss = a.sum() + b.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="run it forward again"):
        loss.backward()


def test_running_backward_out_of_order_is_refused() -> None:
    below, above = make_stack([feedforward_branch], 2, torch.float64)
    tape, x = Tape(), example(torch.float64)
    a, b = reversible_block(below, x, x, tape)
    reversible_block(above, a, b, tape)
    with pytest.raises(RuntimeError, match="the tape holds block 2"):
        (a.sum() + b.sum()).backward()


def test_choices_given_from_outside_are_used_and_given_back() -> None:
    ((attention, _),) = make_stack([lsh_branch, feedforward_branch], 1, torch.float64)
    x = example(torch.float64)
    results = []
    for bucket in (0, 1):
        given = torch.full((2, HEADS, 1, x.shape[1]), bucket)
        given[..., ::2] = 0
        torch.manual_seed(1)
        results.append(reversible_block([attention], x, x, Tape(), [RecomputeState({"buckets": given})])[1])
    assert not torch.allclose(*results)


def test_the_tape_counts_what_replaying_holds() -> None:
    stack = make_stack([lsh_branch, feedforward_branch], 3, torch.float32)
    tape, x = Tape(), example(torch.float32)
    a = b = x
    sizes = []
    for sublayers in stack:
        a, b = reversible_block(sublayers, a, b, tape)
        sizes.append(tape.nbytes())
    assert sizes == [sizes[0], 2 * sizes[0], 3 * sizes[0]]
    assert sizes[0] == 2 * HEADS * 2 * x.shape[1] * 8 + 3 * torch.get_rng_state().numel()


class MemoryTracker(TorchDispatchMode):
    """The peak of the bytes of all storages made under it and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.total = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in inputs and key not in self.live:
                    self.live[key] = storage.nbytes()
                    self.total += storage.nbytes()
                    weakref.finalize(storage, self.forget, key)
        self.peak = max(self.peak, self.total)
        return out

    def forget(self, key: int) -> None:
        self.total -= self.live.pop(key)


def attention_branch(parameters: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
    h = F.layer_norm(x, (WIDTH,), parameters["gain"], parameters["shift"])
    qk, v = heads(h, parameters["qk"]), heads(h, parameters["v"])
    out = full_attention(qk, unit_key(qk), v, scale=1.0, exclude_self=True)
    return F.dropout(F.linear(out.transpose(1, 2).flatten(2), parameters["o"]), 0.1)


SHAPES[attention_branch] = SHAPES[lsh_branch]


def peak_of_activations(n_blocks: int, *, reversible: bool) -> int:
    """Peak bytes of a forward and a backward pass, weights, their gradients and the input not counted."""
    stack = make_stack([attention_branch, feedforward_branch], n_blocks, torch.float32)
    x = example(torch.float32, length=128)
    for sublayers in stack:
        for _, parameters in sublayers:
            for parameter in parameters.values():
                parameter.grad = torch.zeros_like(parameter)
    gc.collect()
    with MemoryTracker() as meter:
        a, b = run(stack, x, reversible=reversible)
        (a.sum() + b.square().sum()).backward()
    return meter.peak


def test_activations_take_the_same_memory_at_4_and_at_24_layers() -> None:
    shallow, deep = (peak_of_activations(n, reversible=True) for n in (4, 24))
    assert abs(deep - shallow) <= 0.05 * shallow, f"{shallow} bytes at 4 layers, {deep} bytes at 24"
    stored, stored_twice = (peak_of_activations(n, reversible=False) for n in (4, 8))
    assert stored_twice > 1.6 * stored, "the meter does not see stored activations"


def test_only_parameters_are_saved_for_the_backward_pass() -> None:
    stack = make_stack([lsh_branch, feedforward_branch], 3, torch.float64)
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(stack, example(torch.float64), reversible=True)
    assert set(saved) == {p.data_ptr() for sublayers in stack for _, own in sublayers for p in own.values()}


def test_the_tape_goes_with_a_forward_pass_that_is_not_run_backward() -> None:
    tape, x = Tape(), example(torch.float64)
    (sublayers,) = make_stack([lsh_branch], 1, torch.float64)
    streams = reversible_block(sublayers, x, x, tape)
    watched = weakref.ref(tape)
    del tape
    assert watched() is not None
    del streams
    assert watched() is None


def test_the_tape_goes_after_an_error() -> None:
    watched: list[weakref.ref[Tape]] = []

    def fails(parameters: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
        raise KeyError("fails")

    def forward() -> None:
        tape, x = Tape(), example(torch.float64)
        watched.append(weakref.ref(tape))
        (sublayers,) = make_stack([lsh_branch], 1, torch.float64)
        a, b = reversible_block(sublayers, x, x, tape)
        reversible_block([(fails, {})], a, b, tape)

    with pytest.raises(KeyError, match="fails"):
        forward()
    gc.collect()
    assert watched[0]() is None


def test_the_tape_holds_nothing_after_the_backward_pass() -> None:
    tape, x = Tape(), example(torch.float64).requires_grad_()
    (sublayers,) = make_stack([lsh_branch], 1, torch.float64)
    a, b = reversible_block(sublayers, x, x, tape)
    output = weakref.ref(b.untyped_storage())
    (a.sum() + b.sum()).backward()
    del a, b
    assert tape.nbytes() > 0
    assert output() is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_gives_the_authors_block(golden, dtype: torch.dtype) -> None:
    arrays = golden("reversible_block_self_gelu", dtype)
    weights = {name: arrays[name].requires_grad_() for name in arrays if name.startswith("w.")}

    def norm(own: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], own["ln.scale"], own["ln.bias"], eps=1e-6)

    def attention(own: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
        q, k, v = (torch.einsum("blD,hDd->bhld", norm(own, x), own[f"w_{n}"]) for n in "qkv")
        out = full_attention(q, k, v, scale=q.shape[-1] ** -0.5)
        return torch.einsum("bhlv,hvD->blD", out, own["w_o"])

    def feedforward(own: Mapping[str, Tensor], x: Tensor, state: RecomputeState) -> Tensor:
        return F.gelu(norm(own, x) @ own["w1"] + own["b1"], approximate="tanh") @ own["w2"] + own["b2"]

    def own(branch: str) -> Parameters:
        prefix = f"w.{branch}."
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}

    x1, x2 = (arrays[name].requires_grad_() for name in ("x1", "x2"))
    tape = Tape()
    y1, y2 = reversible_block([(attention, own("attn")), (feedforward, own("ff"))], x1, x2, tape)
    assert_close(y1, arrays["y1"], GOLDEN, "y1")
    assert_close(y2, arrays["y2"], GOLDEN, "y2")

    rebuilt: list[tuple[Tensor, Tensor]] = []
    undo = tape.undo
    tape.undo = lambda pair: (rebuilt.append(pair), undo(pair))[1]  # type: ignore[method-assign]
    torch.autograd.backward([y1, y2], [arrays["grad_y1"], arrays["grad_y2"]])
    for name, tensor in zip(("recovered_x1", "recovered_x2"), rebuilt[0], strict=True):
        assert_close(tensor, arrays[name], GOLDEN, name)
    for name, tensor in {"x1": x1, "x2": x2, **weights}.items():
        assert_close(tensor.grad, arrays[f"grad_{name}"], GOLDEN, f"grad_{name}")

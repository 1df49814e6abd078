"""The forms of the sparse feed-forward layer, and the units that are chosen without learning."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.config.compose import compose
from efftx.decoding.quantization import QUANTIZATIONS, Quantization
from efftx.decoding.quantized import SPARSE_FF
from efftx.layers.sparse_ff import SparseFF
from efftx.models.build import Model, build_model
from efftx.models.embedding import shift_right
from efftx.ops.recompute_state import RecomputeState
from efftx.ops.sparse_ff import controller_logits, hashed_units
from efftx.optim.optimizers import make_optimizer
from tests.layers.test_sparse_ff import assert_same, example, layer, output_and_gradients, sliced
from tests.tolerances import REBUILT_GRADIENT, ROUNDING, assert_close, relative_error

N = 4
TOKENS = torch.arange(22).view(2, 11) % 7


def chosen(own: SparseFF, x: Tensor) -> Tensor:
    """The units by definition, (B, L, G)."""
    if own.config.controller == "frozen":
        return controller_logits(x, own.c1, own.c2, own.c_bias, N).argmax(-1)
    if own.config.controller == "oracle":
        before = F.linear(x, own.w1, own.b1).unflatten(-1, (-1, N))
        return before.argmax(-1)
    return hashed_units(TOKENS, 6, N, own.salt).long()


def run(own: SparseFF, x: Tensor, state: RecomputeState | None = None) -> Tensor:
    return own(x, state, TOKENS) if own.config.controller == "token" else own(x, state)


def by_definition(own: SparseFF, x: Tensor) -> Tensor:
    mask = F.one_hot(chosen(own, x), N).flatten(-2)
    return F.relu(F.linear(x, own.w1, own.b1)) * mask @ own.w2 + own.b2


def gradients(own: SparseFF, x: Tensor, of: Callable[[SparseFF, Tensor], Tensor]) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    y = of(own, x)
    leaves = {"x": x, **{name: p for name, p in own.named_parameters() if p.requires_grad}}
    cotangent = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(7))
    return {"y": y.detach(), **dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), cotangent), strict=True))}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("chunk_len", [0, 4])
@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("controller", ["frozen", "oracle", "token"])
def test_units_chosen_without_learning_are_hard_in_training_too(
    controller: str, form: str, chunk_len: int, training: bool
) -> None:
    own, x = layer(controller=controller, form=form, chunk_len=chunk_len, salt=3).train(training), example()
    if own.b1 is not None:
        torch.nn.init.normal_(own.b1)
    state = torch.get_rng_state()
    actual = gradients(own, x, run)
    assert torch.equal(torch.get_rng_state(), state), "neither noise nor a coin"
    assert_same(actual, gradients(own, x, by_definition))


@pytest.mark.parametrize("multiply", [False, True])
@pytest.mark.parametrize("mode", ["eval", "hard", "soft"])
def test_the_papers_form_in_slices_changes_neither_values_nor_gradients(mode: str, multiply: bool) -> None:
    x = example()
    units = torch.randint(0, 4, (2, 11, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    choices = {} if mode == "eval" else {"hard": torch.tensor(mode == "hard"), "units": units}
    results = []
    for length in (0, 4):
        own = layer(chunk_len=length, multiply_by_controller=multiply, form="paper").train(mode != "eval")
        results.append(output_and_gradients(own, x, RecomputeState(sliced(choices, length, 11))))
    assert bool(results[0]["b1"].any())
    assert_same(results[1], results[0])


@pytest.mark.parametrize("chunk_len", [0, 4])
@pytest.mark.parametrize("quant_prob", [0.0, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_a_token_bias_is_added_to_the_logits_of_the_units_that_the_hash_names(
    training: bool, quant_prob: float, chunk_len: int
) -> None:
    keys = {"token_bias": 0.7, "temperature": 0.0, "quant_prob": quant_prob, "salt": 2, "chunk_len": chunk_len}
    own, x = layer(**keys).train(training), example()
    named = F.one_hot(hashed_units(TOKENS, 6, N, 2).long(), N).double()
    logits = controller_logits(x, own.c1, own.c2, own.c_bias, N) + 0.7 * named
    soft = training and quant_prob == 0.0
    mask = logits.softmax(-1) if soft else F.one_hot(logits.argmax(-1), N).double()
    expected = F.relu(F.linear(x, own.w1) * mask.flatten(-2)) @ own.w2 + own.b2
    assert_close(own(x, None, TOKENS), expected, ROUNDING)
    assert torch.equal(own.choices(x, None, TOKENS)[0].long(), logits.argmax(-1))
    with pytest.raises(ValueError, match="chooses by the tokens"):
        own(x)


def test_a_frozen_controller_takes_a_token_bias_too() -> None:
    own, x = layer(controller="frozen", token_bias=100.0), example()
    named = F.one_hot(hashed_units(TOKENS, 6, N, 0).long(), N).flatten(-2)
    assert_close(own(x, None, TOKENS), F.relu(F.linear(x, own.w1)) * named @ own.w2 + own.b2, ROUNDING)


def test_a_mask_after_the_relu_teaches_the_controller_from_units_that_were_not_chosen() -> None:
    found = [output_and_gradients(layer(quant_prob=1.0, temperature=0.0, form=f), example()) for f in ("code", "paper")]
    assert relative_error(found[1]["y"], found[0]["y"]) < 1e-4, "b1 starts near 0"
    assert relative_error(found[1]["c2"], found[0]["c2"]) > 0.1


def test_a_first_bias_is_drawn_last_so_that_the_other_weights_are_the_codes() -> None:
    code, paper = layer(), layer(form="paper")
    for name, weight in code.named_parameters():
        assert torch.equal(weight, paper.get_parameter(name)), name
    assert 0 < float(paper.b1.detach().abs().max()) < 1e-5


def test_a_frozen_controller_multiplies_by_its_probabilities_and_is_never_trained() -> None:
    own, x = layer(controller="frozen", multiply_by_controller=True), example()
    logits = controller_logits(x, own.c1, own.c2, own.c_bias, N)
    mask = F.one_hot(logits.argmax(-1), N) * logits.softmax(-1)
    assert_close(own(x), F.relu(F.linear(x, own.w1)) * mask.flatten(-2) @ own.w2 + own.b2, ROUNDING)
    assert {name for name, p in own.named_parameters() if not p.requires_grad} == {"c1", "c2", "c_bias"}


@pytest.mark.parametrize("controller", ["oracle", "token"])
def test_without_a_controller_there_are_the_two_matrices_and_their_bias(controller: str) -> None:
    own = layer(controller=controller)
    assert {name: tuple(p.shape) for name, p in own.named_parameters()} == {"w1": (24, 6), "w2": (24, 6), "b2": (6,)}


def test_the_hash_is_refused_where_no_tokens_are_given() -> None:
    with pytest.raises(ValueError, match="chooses by the tokens at the layer's positions"):
        layer(controller="token")(example())


DECODER = ("model=transformer", "data=stdlib", "size=smoke", "dropout=0", "sparse_ff.N=4", "sparse_ff.controller=token")
PAIR = ("data=stdlib", "size=smoke", "dropout=0", "sparse_ff.N=4", "sparse_ff.controller=token")


def built(*words: str, dtype: torch.dtype = torch.float64) -> Model:
    return build_model(compose([*words]), 30, torch.device("cpu"), dtype)


def seen_tokens(model: Model) -> dict[str, Tensor]:
    """The ids that each sparse feed-forward layer is given, as it runs."""
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, SparseFF):
            module.register_forward_pre_hook(lambda _, given, name=name: seen.__setitem__(name, given[2]))
    return seen


@pytest.mark.parametrize("more", [(), ("reversible.enabled=true",), ("chunking.ff=5",)], ids=str)
def test_a_decoders_layers_see_the_token_that_enters_and_hash_it_each_in_its_own_way(more: tuple[str, ...]) -> None:
    model = built(*DECODER, *more, "n_layers=2")
    seen = seen_tokens(model)
    tokens = torch.randint(30, (2, 16), generator=torch.Generator().manual_seed(1))
    nll, _ = model(tokens, losses=True)
    nll.sum().backward()
    assert len(seen) == 2
    assert all(torch.equal(ids, shift_right(tokens)) for ids in seen.values())
    assert [m.salt for m in model.modules() if isinstance(m, SparseFF)] == [0, 1]
    assert all(p.grad is not None for p in model.parameters())


def test_an_encoder_and_its_decoder_see_their_own_tokens_and_a_joined_decoder_both() -> None:
    inputs = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])
    tokens = torch.tensor([[1, 2, 3], [3, 2, 1]])
    short = ("data.length=5", "data.target_length=3")
    for words, joined in (((*PAIR, "model=scaling"), False), ((*PAIR, "model=terraformer", "attention=[full]"), True)):
        model = built(*words, *short)
        seen = seen_tokens(model)
        model(tokens, inputs)
        expected = torch.tensor([[0, 1, 2], [0, 3, 2]])
        both = torch.tensor([[5, 6, 7, 0, 1, 2, 0, 0], [8, 9, 10, 11, 12, 0, 3, 2]])
        for name, ids in seen.items():
            own = both if joined else expected
            assert torch.equal(ids, inputs if name.startswith("encoder") else own), name


CHOICES = {
    "frozen": ("sparse_ff.controller=frozen",),
    "oracle": ("sparse_ff.controller=oracle",),
    "token": ("sparse_ff.controller=token",),
    "learned": ("sparse_ff.token_bias=2", "sparse_ff.temperature=0", "sparse_ff.quant_prob=1"),
}


@pytest.mark.parametrize("controller", CHOICES)
def test_a_reversible_stack_that_chooses_without_noise_has_the_gradients_of_the_stored_one(controller: str) -> None:
    """The streams of a reversible stack, run under ordinary automatic differentiation."""
    words = [word for word in DECODER if "controller" not in word] + [*CHOICES[controller]]
    model = built(*words, "reversible.enabled=true", "n_layers=3")
    tokens = torch.randint(30, (2, 16), generator=torch.Generator().manual_seed(1))
    model(tokens, losses=True)[0].sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    x = model.embedding(shift_right(tokens)) + model.positions(16)
    a = b = x
    for block in model.blocks:
        for branch in block.children():
            ids = (shift_right(tokens),) if branch.core.__class__ is SparseFF else ()
            a, b = b, a + branch.core(branch.norm(b), None, *ids)
    nll, _ = model.head.losses(torch.cat([a, b], -1), tokens)
    nll.sum().backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert relative_error(grads[name], p.grad) <= REBUILT_GRADIENT[p.dtype], name
        else:
            assert grads[name] is None


def test_training_leaves_a_frozen_controller_as_it_was() -> None:
    words = [word for word in DECODER if "controller" not in word]
    config = compose([*words, "sparse_ff.controller=frozen", "optimizer.weight_decay=0.1", "optimizer.name=adamw"])
    model = build_model(config, 30, torch.device("cpu"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(config.optimizer, model.named_parameters())
    tokens = torch.randint(30, (2, 16), generator=torch.Generator().manual_seed(1))
    model(tokens, losses=True)[0].mean().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        controls = name.rpartition(".")[2] in ("c1", "c2", "c_bias")
        assert torch.equal(p, before[name]) == controls, name


STEPS = {
    "code": {},
    "paper": {"form": "paper"},
    "frozen, multiplied": {"controller": "frozen", "form": "first_bias", "multiply_by_controller": True},
    "oracle": {"controller": "oracle", "form": "paper"},
    "token": {"controller": "token", "form": "paper"},
    "token bias": {"token_bias": 1.0},
}


def on_the_grid(own: SparseFF, largest: int) -> SparseFF:
    """Weights of which none is rounded: whole 128ths up to `largest`, one of every row as large."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            most = largest if name in ("w1", "w2") else 127  # the controller is int8
            parameter.copy_(torch.randint(-most, most + 1, parameter.shape, generator=generator) / 128)
            parameter[..., 0] = most / 128
    return own


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 1), (2, 3)])
@pytest.mark.parametrize("kind", STEPS)
def test_a_step_is_the_layer_for_its_tokens_in_float_int8_and_int4(
    kind: str, batch: int, length: int, quantization: Quantization | None
) -> None:
    # Of a width that 16 does not divide, int8 products are in float32.
    largest = 7 if quantization == "int4" else 127
    own = on_the_grid(layer(N, 12, 48, dtype=torch.float32, salt=1, **STEPS[kind]), largest).eval()
    x = torch.randn(batch, length, 12, generator=torch.Generator().manual_seed(batch))
    tokens = torch.arange(batch * length).view(batch, length) + 5
    with torch.no_grad():
        y = (SPARSE_FF[quantization](own) if quantization else own)(x, None, tokens)
    assert_close(y, own(x, None, tokens), ROUNDING)  # with a gradient to record all units are multiplied


def test_a_step_reads_the_chosen_rows_alone() -> None:
    own = layer(N, 12, 48, dtype=torch.float32).eval()
    with torch.no_grad():
        own.c_bias.view(-1, N)[:, 1] = 1e6
        is_other = torch.arange(48) % N != 1
        own.w1[is_other] = own.w2[is_other] = torch.nan
        assert own(torch.ones(2, 1, 12)).isfinite().all()
        others = RecomputeState({"units": torch.zeros(2, 1, 12, dtype=torch.uint8)})  # choices from outside are kept
        assert own(torch.ones(2, 1, 12), others).isnan().all()


def test_a_step_reads_the_controller_and_one_row_a_block_and_the_oracle_all_of_the_first_matrix() -> None:
    n_rows, width, rank = 12, 12, 12
    controller = rank * width + 48 * rank + 48
    rows = (2 * n_rows + 1) * width
    expected = {
        "code": controller + rows,
        "paper": controller + rows + n_rows,
        "oracle": 48 * width + 48 + (n_rows + 1) * width,
        "token": rows + n_rows,
    }
    for kind, n_weights in expected.items():
        found = layer(N, width, 48, dtype=torch.float32, **STEPS[kind]).weight_reads()
        assert sum(read.weights for read in found) == n_weights, kind
        assert sum(read.bytes for read in found) == 4 * n_weights, kind

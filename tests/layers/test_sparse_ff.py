"""The sparse feed-forward layer is the authors', and chooses, slices and starts as the paper says."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.errors import UserError
from efftx.layers.feedforward import FeedForward
from efftx.layers.initialize import materialize
from efftx.layers.sparse_ff import SparseFF, SparseFFConfig, rank_of
from efftx.ops.recompute_state import RecomputeState
from efftx.ops.sparse_ff import choice_statistics, choose_units, controller_logits
from tests.ops.sparse_ff_forms import FILES, LAYOUTS
from tests.tolerances import GOLDEN, ROUNDING, assert_close

CPU = torch.device("cpu")


def layer(
    n: int = 4,
    d_model: int = 6,
    d_ff: int = 24,
    *,
    dropout: float = 0.0,
    chunk_len: int = 0,
    salt: int = 0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **keys: object,
) -> SparseFF:
    with torch.device("meta"):
        own = SparseFF(SparseFFConfig(N=n, **keys), d_model, d_ff, dropout=dropout, chunk_len=chunk_len, salt=salt)
    own = own.to(dtype)
    materialize(own, CPU, seed)
    return own


def example(length: int = 11, d_model: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(2, length, d_model, dtype=torch.float64, generator=generator).to(dtype)


def output_and_gradients(own: SparseFF, x: Tensor, state: RecomputeState | None = None) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    y = own(x, state)
    cotangent = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(7))
    leaves = {"x": x, **dict(own.named_parameters())}
    grads = torch.autograd.grad(y, list(leaves.values()), cotangent, materialize_grads=True)
    return {"y": y.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        assert_close(actual[name], tensor, ROUNDING, name)


def sliced(choices: Mapping[str, Tensor], chunk_len: int, length: int) -> dict[str, Tensor]:
    """Choices for a whole sequence, under the names of its slices."""
    if not choices or not chunk_len or chunk_len >= length:
        return dict(choices)
    pieces = {f"{i}.units": piece for i, piece in enumerate(choices["units"].split(chunk_len, dim=1))}
    return {**{name: choice for name, choice in choices.items() if name != "units"}, **pieces}


def load(own: SparseFF, arrays: Mapping[str, Tensor], prefix: str) -> None:
    with torch.no_grad():
        for name, (parameter, layout) in LAYOUTS.items():
            own.get_parameter(parameter).copy_(layout(arrays[f"{prefix}{name}"]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk_len", [0, 5])
@pytest.mark.parametrize("mode", ["eval", "train_quant", "train_soft"])
@pytest.mark.parametrize("file", FILES)
def test_it_gives_the_authors_outputs_and_gradients(
    golden, file: str, mode: str, chunk_len: int, dtype: torch.dtype
) -> None:
    arrays, (n, multiply) = golden(file, dtype), FILES[file]
    (d_model, rank), d_ff = arrays["w.controller.m1"].shape, arrays["w.controller.mb"].numel()
    keys = {"rank": str(rank), "multiply_by_controller": multiply}
    own = layer(n, d_model, d_ff, chunk_len=chunk_len, dtype=dtype, **keys).train(mode != "eval")
    load(own, arrays, "w.")
    x, choices = arrays["x"].requires_grad_(), {}
    if mode != "eval":
        logits = controller_logits(x, own.c1, own.c2, own.c_bias, n)
        uniform = arrays[f"{mode}.gumbel_uniform"].view(logits.shape)
        choices = {"hard": torch.tensor(mode == "train_quant"), "units": choose_units(logits, uniform, 0.1)}
        choices = sliced(choices, chunk_len, x.shape[1])
    y = own(x, RecomputeState(choices))
    assert_close(y, arrays["y_eval" if mode == "eval" else f"{mode}.y"], GOLDEN, "y")
    y.backward(arrays["eval.grad_out"])
    assert_close(x.grad, arrays[f"{mode}.grad_x"], GOLDEN, "grad_x")
    for name, (parameter, layout) in LAYOUTS.items():
        weight = own.get_parameter(parameter)
        grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert_close(grad, layout(arrays[f"{mode}.grad_w.{name}"]), GOLDEN, name)


def test_the_rank_is_the_codes_the_papers_or_a_number() -> None:
    # The authors' medium and large models, and the large timing model, whose config gives the number.
    assert rank_of(SparseFFConfig(N=64), 1024, 4096) == 64
    assert rank_of(SparseFFConfig(N=64), 1024, 6144) == 96
    assert rank_of(SparseFFConfig(N=64, rank="paper"), 1024, 4096) == 16
    assert rank_of(SparseFFConfig(N=256, rank="32"), 9216, 65_536) == 32


@pytest.mark.parametrize(
    ("keys", "widths", "says"),
    [
        ({"N": 5}, (6, 24), "d_ff=24 cannot be cut into blocks of sparse_ff.N=5"),
        ({"N": 0}, (6, 24), "sparse_ff.N=0 must be at least 1"),
        ({"N": 8, "rank": "paper"}, (6, 24), "d_model=6 over sparse_ff.N=8 is less than 1"),
        ({"N": 4, "rank": "cod"}, (6, 24), "sparse_ff.rank=cod gives the controller no rank"),
        ({"N": 4, "rank": "0"}, (6, 24), "sparse_ff.rank=0 gives the controller no rank"),
        ({"N": 4, "rank": "-3"}, (6, 24), "sparse_ff.rank=-3 gives the controller no rank"),
        ({"N": 4, "temperature": -0.1}, (6, 24), "must not be negative"),
        ({"N": 4, "form": "papers"}, (6, 24), "sparse_ff.form=papers is not known"),
        ({"N": 4, "controller": "hash"}, (6, 24), "sparse_ff.controller=hash is not known"),
        (
            {"N": 4, "controller": "oracle", "multiply_by_controller": True},
            (6, 24),
            "sparse_ff.controller=oracle gives no probabilities",
        ),
        ({"N": 4, "quant_prob": 1.5}, (6, 24), "sparse_ff.quant_prob=1.5 is not a probability"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, object], widths: tuple[int, int], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        SparseFF(SparseFFConfig(**keys), *widths)
    assert caught.value.kind == "bad_value"


def test_a_width_that_fits_is_named() -> None:
    with pytest.raises(UserError) as caught:
        SparseFF(SparseFFConfig(N=64), 128, 500)
    assert caught.value.hint.startswith("Take d_ff=512")


def test_it_has_the_dense_weights_without_a_first_bias_and_a_low_rank_controller() -> None:
    own = layer(64, 128, 512)
    assert sum(p.numel() for p in own.parameters()) == 2 * 128 * 512 + 128 + 8 * (128 + 512) + 512


def test_matrices_start_glorot_uniform_and_biases_near_zero() -> None:
    own = layer(16, 64, 256)
    for matrix in (own.c1, own.c2, own.w1, own.w2):
        bound = math.sqrt(6 / sum(matrix.shape))
        assert 0.97 * bound < float(matrix.detach().abs().max()) <= bound
    for bias in (own.c_bias, own.b2):
        assert 0.7e-6 < float(bias.detach().std()) < 1.3e-6
    scaled = layer(16, 64, 256, kernel_scaling=True)
    assert_close(scaled.w2, 4 * own.w2, ROUNDING)
    assert torch.equal(scaled.w1, own.w1)


def test_kernel_scaling_keeps_the_variance_of_the_dense_layer_which_is_n_times_as_large_without() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 500, 64, dtype=torch.float64)
    dense = FeedForward(64, 512, activation="relu", dropout=0.0).double()
    dense.reset_parameters()
    variances = [layer(8, 64, 512, kernel_scaling=on).eval()(x).detach().var() for on in (True, False)]
    assert float(variances[0] / dense(x).detach().var()) == pytest.approx(1, abs=0.15)
    assert float(variances[0] / variances[1]) == pytest.approx(8)


def test_evaluation_is_hard_and_without_noise() -> None:
    own, x = layer(temperature=5.0).eval(), example()
    state = torch.get_rng_state()
    y = own(x)
    assert torch.equal(torch.get_rng_state(), state)
    logits = controller_logits(x, own.c1, own.c2, own.c_bias, 4)
    mask = F.one_hot(logits.argmax(-1), 4).flatten(-2)
    assert_close(y, F.relu(F.linear(x, own.w1) * mask) @ own.w2 + own.b2, ROUNDING)


@pytest.mark.parametrize(("quant_prob", "hard"), [(1.0, True), (0.0, False)])
def test_training_takes_the_hard_mask_with_the_given_probability(quant_prob: float, hard: bool) -> None:
    own, x = layer(quant_prob=quant_prob, temperature=0.0), example()
    logits = controller_logits(x, own.c1, own.c2, own.c_bias, 4)
    mask = F.one_hot(logits.argmax(-1), 4) if hard else logits.softmax(-1)
    assert_close(own(x), F.relu(F.linear(x, own.w1) * mask.flatten(-2)) @ own.w2 + own.b2, ROUNDING)


def test_one_coin_a_call_decides_for_the_whole_batch() -> None:
    own, x = layer(quant_prob=0.3, temperature=0.0), example()
    kinds = [layer(quant_prob=p, temperature=0.0)(x).detach() for p in (1.0, 0.0)]
    torch.manual_seed(0)
    n_hard, calls = 0, 400
    for _ in range(calls):
        y = own(x).detach()
        is_hard, is_soft = (torch.equal(y, kind) for kind in kinds)
        assert is_hard != is_soft
        n_hard += is_hard
    assert abs(n_hard / calls - 0.3) < 4 * math.sqrt(0.3 * 0.7 / calls)


def test_training_is_noisy_and_temperature_0_is_not() -> None:
    x = example()
    noisy, quiet = (layer(quant_prob=1.0, temperature=t) for t in (1.0, 0.0))
    assert not torch.equal(noisy(x), noisy(x))
    assert torch.equal(quiet(x), quiet(x))


@pytest.mark.parametrize("chunk_len", [0, 4])
def test_dropout_is_on_the_hidden_units_and_for_training_only(chunk_len: int) -> None:
    own, x = layer(dropout=0.999, chunk_len=chunk_len, quant_prob=0.0), example()
    with torch.no_grad():
        own.b2.fill_(3.0)
    torch.manual_seed(0)
    assert bool((own(x) == 3.0).all(-1).any())
    own.eval()
    assert torch.equal(own(x), own(x))
    assert bool((own(x) != 3.0).any(-1).all())


@pytest.mark.parametrize("multiply", [False, True])
@pytest.mark.parametrize("mode", ["eval", "hard", "soft"])
@pytest.mark.parametrize("chunk_len", [1, 4, 11, 100])
def test_slices_that_choose_alike_change_neither_values_nor_gradients(
    chunk_len: int, mode: str, multiply: bool
) -> None:
    x = example()
    units = torch.randint(0, 4, (2, 11, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    choices = {} if mode == "eval" else {"hard": torch.tensor(mode == "hard"), "units": units}
    results = []
    for length in (0, chunk_len):
        own = layer(chunk_len=length, multiply_by_controller=multiply).train(mode != "eval")
        results.append(output_and_gradients(own, x, RecomputeState(sliced(choices, length, 11))))
    assert_same(results[1], results[0])


def test_its_choices_tell_what_noise_changes_and_leave_the_random_state() -> None:
    own, x = layer(temperature=1.0), example(200)
    state = torch.get_rng_state()
    quiet, noisy = own.choices(x, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    state = RecomputeState()
    own.eval()(x, state)
    assert torch.equal(quiet, state.choices["units"])
    statistics = choice_statistics(quiet, noisy, 4)
    assert 0.3 < float(statistics.agreement) < 0.99
    assert int(statistics.n_chosen.sum()) == 2 * 200 * 6
    assert torch.equal(*layer(temperature=0.0).choices(x))


def test_every_parameter_learns_from_a_hard_and_from_a_soft_step() -> None:
    for quant_prob in (0.0, 1.0):
        gradients = output_and_gradients(layer(quant_prob=quant_prob), example())
        assert all(bool(grad.any()) for grad in gradients.values())


@pytest.mark.parametrize("chunk_len", [0, 4])
def test_it_trains_under_autocast(chunk_len: int) -> None:
    own, x = layer(dtype=torch.float32, chunk_len=chunk_len, dropout=0.1), example(dtype=torch.float32)
    for training in (True, False):
        own.train(training)
        own.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = own(x.requires_grad_())
        y.float().sum().backward()
        assert own.w1.grad is not None
        assert bool(own.w1.grad.isfinite().all())


@pytest.mark.parametrize("training", [True, False])
def test_it_runs_on_the_meta_device(training: bool) -> None:
    with torch.device("meta"):
        own = SparseFF(SparseFFConfig(N=4, multiply_by_controller=True), 6, 24, dropout=0.1).train(training)
    y = own(torch.empty(2, 5, 6, device="meta"))
    y.sum().backward()
    assert y.shape == (2, 5, 6)

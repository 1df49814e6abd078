"""Every kernel gives what PyTorch's operations give, on any number of threads and at sizes that are no round ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.layers.cache import Position, RecentInputs
from efftx.native.library import kernels
from efftx.native.program import (
    LONGEST,
    MOST_ROWS,
    Normed,
    NotCompiledError,
    Program,
    Rows4,
    Rows8,
    Stream,
    buffer,
    run,
)
from efftx.ops.attention import unit_key
from efftx.ops.int4 import dequantize_groups, quantize_groups
from efftx.ops.int8 import dequantize_rows, pack_rows, quantize_rows
from efftx.ops.module_convolution import module_convolution
from efftx.ops.multiplicative import in_blocks, multiplicative
from efftx.ops.sru import sru
from tests.tolerances import ROUNDED_INPUTS, ROUNDING, assert_close

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C++ compiler")

EPS = 1e-6


@pytest.fixture(params=[1, 2, 3], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    torch.manual_seed(1)  # for what is drawn in place
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


def _lanes() -> int:
    found = kernels()
    assert found is not None
    return found.lanes


def _normed(draw: Callable[..., Tensor], width: int) -> tuple[Normed, Callable[[Tensor], Tensor]]:
    weight, bias = 1 + 0.1 * draw(width), 0.1 * draw(width)
    return Normed(Stream(0), weight, bias, EPS), lambda x: F.layer_norm(x, (width,), weight, bias, EPS)


def _run(program: Program, *streams: Tensor, cache: Any = None, n: int = 0) -> None:
    program.bind(tuple(x.data_ptr() for x in streams), [SimpleNamespace(core=cache, beside=cache)], n)
    run([program])


@pytest.mark.parametrize("n_outputs", [1, 4, 7, 130])
@pytest.mark.parametrize(
    ("width", "quantization"),
    [
        *((width, None) for width in (1, 15, 16, 100, 512, 1000)),
        *((width, "int8") for width in (1, 15, 63, 100, 512, 513, 1500)),
        *((width, "int4") for width in (1, 31, 64, 127, 128, 129, 1000, 1024)),
    ],
)
def test_matvec(width: int, n_outputs: int, quantization: str | None, draw: Callable[..., Tensor]) -> None:
    x, given, bias, y = draw(1, width), draw(n_outputs, width), draw(n_outputs), draw(1, n_outputs)
    given, weight = _QUANTIZED[quantization](given) if quantization else (given, given)
    normed, norm = _normed(draw, width)
    added, rectified, plain = y + F.linear(x, weight, bias), F.linear(norm(x), weight, bias).relu(), x @ weight.t()
    of_norm, of_plain = torch.empty(n_outputs), torch.empty(n_outputs)
    program = Program()
    program.matvec(Stream(0), given, bias, Stream(1), "a", adds=True)
    program.matvec(normed, given, bias, of_norm, "b", relu=True)
    program.matvec(x, given, None, of_plain, "c")
    _run(program, x.clone(), y)
    for found, expected, inputs in ((y[0], added[0], x), (of_norm, rectified[0], norm(x)), (of_plain, plain[0], x)):
        if quantization:
            assert_rounded(found, expected, weight, inputs, *ROUNDED_TO[quantization])
        else:
            assert_close(found, expected, ROUNDING)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("width", "n_rows", "vectors", "rank"), [(40, 1, 1, 3), (64, 6, 4, 16), (100, 13, 5, 33), (1024, 9, 8, 8)]
)
def test_sparse_ff(width: int, n_rows: int, vectors: int, rank: int, biased: bool, draw: Callable[..., Tensor]) -> None:
    N = vectors * _lanes()
    c1, c2, c_bias = draw(rank, width), draw(n_rows * N, rank), draw(n_rows * N)
    w1, w2, b2, x = draw(n_rows * N, width), draw(n_rows * N, width), draw(width), draw(1, width)
    normed, norm = _normed(draw, width)
    h = norm(x)
    row_G = (c2 @ (c1 @ h[0]) + c_bias).view(n_rows, N).argmax(1) + N * torch.arange(n_rows)
    b1 = draw(n_rows * N) if biased else None
    expected = x + (w1[row_G] @ h[0] + (0 if b1 is None else b1[row_G])).relu() @ w2[row_G] + b2
    program = Program()
    program.sparse_ff(normed, [c1, c2, c_bias, w1, w2, b2], N, Stream(0), b1)
    _run(program, x)
    assert torch.equal(buffer("row", n_rows, torch.int64)[0], row_G)
    assert_close(x, expected, ROUNDING)


def _quantized(weight: Tensor) -> tuple[Rows8, Tensor]:
    """Rows for the kernels, and the matrix that they stand for."""
    q, scale = quantize_rows(weight)
    return Rows8(q, scale.float()), dequantize_rows(q, scale)


def _quantized_4(weight: Tensor) -> tuple[Rows4, Tensor]:
    packed = quantize_groups(weight)
    return Rows4(packed, weight.shape[1]), dequantize_groups(packed, weight.shape[1])


_QUANTIZED: dict[str, Callable[[Tensor], tuple[Any, Tensor]]] = {"int8": _quantized, "int4": _quantized_4}


ROUNDED_TO = {"int8": (512, 32767), "int4": (64, 32639)}
"""Inputs that have a scale in common, and the steps that the largest of them has."""


def assert_rounded(
    actual_O: Tensor, expected_O: Tensor, weight_OD: Tensor, x_1D: Tensor, n: int = 512, steps: int = 32767
) -> None:
    """Every input has been rounded by half a step at most, of `steps` in the largest of `n`."""
    largest_D = torch.cat([part.abs().max().expand(part.shape) for part in x_1D[0].split(n)])
    bound_O = weight_OD.abs().double() @ (largest_D.double() / steps / 2)
    of_sums_O = 5e-6 * (weight_OD.abs() @ x_1D[0].abs() + expected_O.abs())
    assert bool(((actual_O - expected_O).abs() <= bound_O + of_sums_O).all())


@pytest.mark.parametrize("quantization", _QUANTIZED)
@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("width", [65, 100, 130])
def test_products_of_several_rows_of_inputs(
    width: int, rows: int, quantization: str, draw: Callable[..., Tensor]
) -> None:
    x, bias, y = draw(rows, width), draw(width), draw(rows, width)
    weights, weight = _QUANTIZED[quantization](draw(width, width))
    before = y.clone()
    program = Program()
    program.matvec(Stream(0), weights, bias, Stream(1), "a", adds=True)
    program.bind((x.data_ptr(), y.data_ptr()), [], 0, width=width)
    run([program], rows=rows)
    expected = before + F.linear(x, weight, bias)
    for b in range(rows):
        assert_rounded(y[b], expected[b], weight, x[b : b + 1], *ROUNDED_TO[quantization])


@pytest.mark.parametrize("quantization", _QUANTIZED)
@pytest.mark.parametrize("width", [65, 200])
def test_several_rows_of_a_quantised_sparse_ff_are_what_each_is_alone(
    width: int, quantization: str, draw: Callable[..., Tensor]
) -> None:
    n_rows, N, rank, rows = 11, 16, 8, 3
    controller = (_quantized(draw(rank, width))[0], _quantized(draw(n_rows * N, rank))[0])
    w1, w2 = draw(n_rows * N, width), draw(n_rows * N, width)
    r1, r2 = (_QUANTIZED[quantization](weight)[0] for weight in (w1, w2))
    if quantization == "int8":
        r2 = Rows8(pack_rows(*quantize_rows(w2)), r2.scale)
    normed, _ = _normed(draw, width)
    x, biases = draw(rows, width), (draw(n_rows * N), draw(width))
    program = Program()
    program.sparse_ff_quantized(normed, controller, (r1, r2), biases, N, Stream(0))
    alone = x.clone()
    for b in range(rows):
        program.bind((alone[b].data_ptr(),), [], 0)
        run([program])
    program.bind((x.data_ptr(),), [], 0, width=width)
    run([program], rows=rows)
    assert_close(x, alone, ROUNDING)


def test_blocks_of_inputs_are_rounded_each_by_its_own_largest(draw: Callable[..., Tensor]) -> None:
    rows, weight = _quantized(draw(9, 1100))
    x, y = draw(1, 1100) * torch.logspace(-12, 3, 1100), torch.empty(9)
    program = Program()
    program.matvec(x, rows, None, y, "a")
    _run(program)
    assert_rounded(y, weight @ x[0], weight, x)
    x[:, 512:] = 0.0
    _run(program)
    assert_rounded(y, weight @ x[0], weight, x)


@pytest.mark.parametrize("large", [0.0, 1e-44, 1e-36, 1e-30, 1e33])
def test_int8_weights_take_inputs_of_any_size(large: float) -> None:
    rows, weight = _quantized(torch.full((3, 40), 0.25))
    x, y = torch.zeros(1, 40), torch.empty(3)
    x[0, 7] = large
    program = Program()
    program.matvec(x, rows, None, y, "a")
    _run(program)
    assert_close(y, weight[:, 7] * (large if large > 1e-34 else 0.0), ROUNDED_INPUTS)


@pytest.mark.parametrize("quantization", _QUANTIZED)
@pytest.mark.parametrize("strange", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("at", [0, 33, 39])
def test_quantised_weights_pass_on_what_is_no_number(strange: float, at: int, quantization: str) -> None:
    rows, _ = _QUANTIZED[quantization](torch.ones(3, 40))
    x, y = torch.ones(1, 40), torch.empty(3)
    x[0, at] = strange
    program = Program()
    program.matvec(x, rows, None, y, "a")
    _run(program)
    assert bool(y.isnan().all())


@pytest.mark.parametrize("large", [0.0, 1e-30, 1e30])
def test_int4_weights_take_inputs_of_any_size(large: float, draw: Callable[..., Tensor]) -> None:
    rows, weight = _quantized_4(draw(5, 300))
    x, y = large * draw(1, 300), torch.empty(5)
    program = Program()
    program.matvec(x, rows, None, y, "a")
    _run(program)
    assert_rounded(y, x[0] @ weight.t(), weight, x, *ROUNDED_TO["int4"])


@pytest.mark.parametrize("largest", [32639.0, -32639.0])
def test_int4_products_are_exact_where_float32_is(largest: float) -> None:
    """Each of the 15 numbers in every place of a unit, times whole numbers of up to 15 bits that leave no rounding."""
    q = (torch.arange(15 * 128).view(15, 128) * 7 % 15 - 7).float()
    q[:, ::64] = 7.0  # so that the scale of every group is 1
    rows, weight = _quantized_4(q)
    assert torch.equal(weight, q)
    x, y = (torch.arange(128) * 7919 % 65279 - 32639).float()[None], torch.empty(15)
    x[0, 3] = x[0, 64] = largest
    program = Program()
    program.matvec(x, rows, None, y, "a")
    _run(program)
    assert torch.equal(y, (q.double() @ x[0].double()).float())


def test_the_largest_integers_of_a_whole_block_are_added_without_overflow() -> None:
    rows, weight = _quantized(torch.ones(2, 5120))
    x, y = torch.full((1, 5120), -3.0), torch.empty(2)
    program = Program()
    program.matvec(x, rows, None, y, "a")
    _run(program)
    assert_close(y, (x.double() @ weight.double().t())[0].float(), ROUNDING)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("quantization", _QUANTIZED)
@pytest.mark.parametrize(
    ("width", "n_rows", "N", "rank"), [(40, 1, 4, 3), (64, 6, 64, 16), (100, 29, 24, 33), (1024, 17, 128, 8)]
)
def test_sparse_ff_of_quantised_weights(
    width: int, n_rows: int, N: int, rank: int, quantization: str, biased: bool, draw: Callable[..., Tensor]
) -> None:
    of_controller = [draw(rank, width), draw(n_rows * N, rank)]
    of_rows = [draw(n_rows * N, width), draw(n_rows * N, width)]
    (r1, c1), (r2, c2) = (_quantized(weight) for weight in of_controller)
    (r3, w1), (r4, w2) = (_QUANTIZED[quantization](weight) for weight in of_rows)
    c_bias, b2, x = draw(n_rows * N), draw(width), draw(1, width)
    normed, norm = _normed(draw, width)
    h = norm(x)
    row_G = (c2 @ (c1 @ h[0]) + c_bias).view(n_rows, N).argmax(1) + N * torch.arange(n_rows)
    b1 = draw(n_rows * N) if biased else None
    expected = x + (w1[row_G] @ h[0] + (0 if b1 is None else b1[row_G])).relu() @ w2[row_G] + b2
    program = Program()
    if quantization == "int8":
        r4 = Rows8(pack_rows(*quantize_rows(of_rows[1])), r4.scale)
    program.sparse_ff_quantized(normed, (r1, r2), (r3, r4), (c_bias, b2), N, Stream(0), b1)
    _run(program, x)
    assert torch.equal(buffer("row", n_rows, torch.int64)[0], row_G)
    assert_close(x, expected, ROUNDED_INPUTS)


def test_int8_of_equal_units_the_first_is_chosen_and_no_other_row_is_read() -> None:
    N, width = 12, 24
    c_bias = torch.zeros(2, N)
    c_bias[0, [N - 1, 5, 7]] = 1.0
    scale_1, scale_2 = torch.full((2 * N,), torch.nan), torch.full((2 * N,), torch.nan)
    scale_1[[5, N]], scale_2[[5, N]] = 1.0, 0.5
    ones, zeros = torch.ones(2 * N, width, dtype=torch.int8), torch.zeros(4, width, dtype=torch.int8)
    packed = pack_rows(ones, torch.ones(2 * N))
    controller = (Rows8(zeros, torch.ones(4)), Rows8(torch.zeros(2 * N, 4, dtype=torch.int8), torch.ones(2 * N)))
    x = torch.ones(1, width)
    normed = Normed(Stream(0), torch.zeros(width), torch.ones(width), EPS)
    program = Program()
    rows = (Rows8(ones, scale_1), Rows8(packed, scale_2))
    program.sparse_ff_quantized(normed, controller, rows, (c_bias.flatten(), torch.zeros(width)), N, Stream(0))
    _run(program, x)
    assert_close(x, torch.full((1, width), 1.0 + 2 * 0.5 * width), ROUNDED_INPUTS)


def test_of_equal_units_the_first_is_chosen_and_no_other_row_is_read(draw: Callable[..., Tensor]) -> None:
    N, width = 3 * _lanes(), 24
    c_bias = torch.zeros(2, N)
    c_bias[0, [N - 1, 5, N // 2]] = 1.0
    c_bias[1, [_lanes() + 1, 2 * _lanes()]] = 1.0
    w1, w2 = torch.full((2 * N, width), torch.nan), torch.full((2 * N, width), torch.nan)
    for row in (5, N + _lanes() + 1):
        w1[row], w2[row] = 1.0, 0.5
    x = torch.ones(1, width)
    normed = Normed(Stream(0), torch.zeros(width), torch.ones(width), EPS)
    parameters = [torch.zeros(4, width), torch.zeros(2 * N, 4), c_bias.flatten(), w1, w2, torch.zeros(width)]
    program = Program()
    program.sparse_ff(normed, parameters, N, Stream(0))
    _run(program, x)
    assert torch.equal(x, torch.full((1, width), 1.0 + 2 * 0.5 * width))


@pytest.mark.parametrize(
    ("width", "S", "vectors", "positions", "modules"),
    [
        (48, 3, 1, 3, (3, 3, 1)),
        (200, 8, 2, 1, (3, 1)),
        (256, 16, 4, 3, (3, 3, 1)),
        (300, 11, 5, 3, (3,)),
        (1000, 9, 3, 5, (5, 5, 5)),
    ],
)
def test_modules(
    width: int, S: int, vectors: int, positions: int, modules: tuple[int, ...], draw: Callable[..., Tensor]
) -> None:
    m, length = vectors * _lanes(), 40  # more tokens than the buffer of the past has places
    gate, proj, bias = draw(S, width), draw(width, m) / width**0.5, draw(S * m)
    weights = [(draw(positions, k, m, m) / (positions * k * m) ** 0.5, draw(m)) for k in modules]
    x_LD = draw(length, width)
    normed, norm = _normed(draw, width)
    shared = multiplicative(norm(x_LD)[None], gate, proj, bias).unflatten(-1, (S, m))
    expected = [module_convolution(shared, kernel, b) for kernel, b in weights]
    recent = RecentInputs(1, positions, S, m, max(modules) // 2, gate, Position())
    y = torch.empty(len(modules) * S * m)
    program = Program()
    program.modules(normed, [gate, proj, bias], weights, y, lambda cache: cache)
    for i, x in enumerate(x_LD):
        _run(program, x[None].clone(), cache=recent)
        for c, part in enumerate(y.view(len(modules), S, m)):
            assert_close(part, expected[c][0, i], ROUNDING, f"convolution {c}, token {i}")


@pytest.mark.parametrize(("n_heads", "d", "capacity"), [(2, 3, 3), (4, 16, 40), (5, 24, 17), (16, 64, 300)])
def test_attention(n_heads: int, d: int, capacity: int, draw: Callable[..., Tensor]) -> None:
    k_HTd, v_HTd = torch.zeros(1, n_heads, capacity, d), torch.zeros(1, n_heads, capacity, d)
    q, key, value, x = (draw(n_heads * d) for _ in range(4))
    out = torch.empty(n_heads * d)
    program = Program()
    whole = program.attend(q, (key, value), n_heads, out, scale=0.3, adds=False)
    last_two = program.attend(q, None, n_heads, Stream(0), scale=0.3, adds=True)
    for n in range(capacity):
        for t in (q, key, value, x):
            t.normal_()
        before, x_1D = x.clone(), x[None].clone()
        whole(k_HTd, v_HTd, n, 0, n + 1)
        last_two(k_HTd, v_HTd, 0, max(0, n - 1), n + 1)
        _run(program, x_1D)
        assert torch.equal(k_HTd[0, :, n].flatten(), key)
        assert torch.equal(v_HTd[0, :, n].flatten(), value)
        q_1H1d = q.view(1, n_heads, 1, d)
        for first, found in ((0, out), (max(0, n - 1), x_1D[0] - before)):
            seen = slice(first, n + 1)
            expected = F.scaled_dot_product_attention(q_1H1d, k_HTd[:, :, seen], v_HTd[:, :, seen], scale=0.3)
            assert_close(found, expected.flatten(), ROUNDING, f"place {n} from {first}")


def test_large_scores_and_unit_keys(draw: Callable[..., Tensor]) -> None:
    n_heads, d = 3, 20
    k, v = torch.zeros(1, n_heads, 40, d), torch.zeros(1, n_heads, 40, d)
    q, value, out = torch.empty(n_heads * d), torch.empty(n_heads * d), torch.empty(n_heads * d)
    program = Program()
    bind = program.attend(q, (None, value), n_heads, out, scale=1.0, adds=False)
    for n in range(40):
        q.normal_(std=20.0)
        value.normal_()
        bind(k, v, n, 0, max(n, 1))
        _run(program)
        assert_close(k[0, :, n], unit_key(q.view(n_heads, d)), ROUNDING, "key")
        seen = slice(0, max(n, 1))
        expected = F.scaled_dot_product_attention(q.view(1, n_heads, 1, d), k[:, :, seen], v[:, :, seen], scale=1.0)
        assert_close(out, expected.flatten(), ROUNDING, f"place {n}")


@pytest.mark.parametrize(("S", "m"), [(1, 40), (2, 1000), (4, 64), (7, 129), (8, 96), (11, 33)])
def test_blocked_product(S: int, m: int, draw: Callable[..., Tensor]) -> None:
    gate, proj, x, y = draw(S, 50), draw(50, m), draw(1, 50), torch.empty(S * m)
    program = Program()
    program.blocked_product(Stream(0), gate, in_blocks(proj), m, y)
    _run(program, x)
    assert_close(y, multiplicative(x, gate, proj)[0], ROUNDING)


@pytest.mark.parametrize("n", [1, 7, 130, 100_003])
def test_sum(n: int, draw: Callable[..., Tensor]) -> None:
    x, y = draw(n).abs(), torch.empty(1)
    program = Program()
    program.sum(x, y)
    _run(program)
    assert_close(y, x.double().sum(0, keepdim=True).float(), ROUNDING)


@pytest.mark.parametrize("d", [1, 8, 50])
def test_recurrent_unit(d: int, draw: Callable[..., Tensor]) -> None:
    kernel, bias = draw(d, 3 * d), draw(3 * d)
    state = SimpleNamespace(c_BNd=torch.zeros(1, 2, d))
    x, y = torch.empty(d), torch.empty(d)
    program = Program()
    program.recurrent_unit(x, kernel, bias, y, 1)
    c = torch.zeros(1, d)
    for _ in range(5):
        x.normal_()
        _run(program, cache=state)
        expected, after = sru(x[None, None], torch.addmm(bias, x[None], kernel)[None], c)
        c = after[:, 0]
        assert_close(y, expected[0, 0], ROUNDING)
        assert_close(state.c_BNd[:, 1], c, ROUNDING)
    assert not state.c_BNd[:, 0].any()


def test_programs_run_one_after_the_other_and_say_when_each_part_ended(draw: Callable[..., Tensor]) -> None:
    weights = [draw(30, 30) / 30**0.5 for _ in range(5)]
    x = draw(1, 30)
    expected, programs = x.clone(), []
    for weight in weights:
        expected = expected + expected @ weight.t()
        program, between = Program(), buffer("between", 30)
        program.matvec(Stream(0), weight, None, between, "first")
        program.matvec(between, torch.eye(30), None, Stream(0), "second", adds=True)
        program.bind((x.data_ptr(),), [], 0)
        programs.append(program)
    told: list[tuple[str, float]] = []
    run(programs, lambda component, moment: told.append((component, moment)))
    assert_close(x, expected, ROUNDING)
    assert [component for component, _ in told] == ["first", "second"] * 5
    assert [moment for _, moment in told] == sorted(moment for _, moment in told)


def test_what_the_kernels_do_not_have_is_refused(draw: Callable[..., Tensor]) -> None:
    program, x = Program(), torch.empty(8)
    normed, _ = _normed(draw, 8)
    with pytest.raises(NotCompiledError, match="float32"):
        program.matvec(x, draw(4, 8).double(), None, x, "a")
    with pytest.raises(NotCompiledError, match="float32"):
        program.matvec(x, draw(8, 4).t(), None, x, "a")
    units = 2 * (_lanes() + 1)
    parameters = [draw(2, 8), draw(units, 2), draw(units), draw(units, 8), draw(units, 8), draw(8)]
    with pytest.raises(NotCompiledError, match="whole vectors"):
        program.sparse_ff(normed, parameters, _lanes() + 1, Stream(0))
    with pytest.raises(NotCompiledError, match="Modules"):
        program.modules(normed, [draw(2, 8), draw(8, 3), draw(6)], [(draw(3, 1, 3, 3), draw(3))], x, lambda c: c)
    with pytest.raises(NotCompiledError, match="columns"):
        program.blocked_product(x, draw(2, 8), draw(1, 8, 3), 3, x)
    for _ in range(LONGEST - program.n_ops):
        program.matvec(x, draw(8, 8), None, x, "a")
    with pytest.raises(NotCompiledError, match=f"More than {LONGEST}"):
        program.matvec(x, draw(8, 8), None, x, "a")


def test_python_and_the_kernels_agree_on_the_most_rows() -> None:
    found = kernels()
    assert found is not None
    assert found.most_rows == MOST_ROWS

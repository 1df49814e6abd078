"""The kernels of int8 and int4 weights against products with the weights that these stand for, errors stated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.layers.cache import Position, RecentInputs
from efftx.native.library import kernels
from efftx.native.program import Columns8, Normed, NotCompiledError, Program, Rows4, Rows8, Stream, buffer, run
from efftx.ops.int4 import dequantize_groups, quantize_groups
from efftx.ops.int8 import dequantize_rows, pack_rows, quantize_columns, quantize_rows
from efftx.ops.module_convolution import module_convolution
from efftx.ops.multiplicative import in_blocks, multiplicative
from tests.native.programs import EPS, lanes, normed_stream, products_of, run_alone
from tests.tolerances import ROUNDED_INPUTS, ROUNDING, assert_close

pytestmark = [
    pytest.mark.skipif(kernels() is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("threads"),
]


def quantized_to_int8(weight: Tensor) -> tuple[Rows8, Tensor]:
    """Rows for the kernels, and the matrix that they stand for."""
    q, scale = quantize_rows(weight)
    return Rows8(q, scale.float()), dequantize_rows(q, scale)


def quantized_to_int4(weight: Tensor) -> tuple[Rows4, Tensor]:
    packed = quantize_groups(weight)
    return Rows4(packed, weight.shape[1]), dequantize_groups(packed, weight.shape[1])


QUANTIZED: dict[str, Callable[[Tensor], tuple[Any, Tensor]]] = {"int8": quantized_to_int8, "int4": quantized_to_int4}


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


@pytest.mark.parametrize("n_outputs", [1, 4, 7, 130])
@pytest.mark.parametrize(
    ("width", "quantization"),
    [
        *((width, "int8") for width in (1, 15, 63, 100, 512, 513, 1500)),
        *((width, "int4") for width in (1, 31, 64, 127, 128, 129, 1000, 1024)),
    ],
)
def test_matvec(width: int, n_outputs: int, quantization: str, draw: Callable[..., Tensor]) -> None:
    rows, weight = QUANTIZED[quantization](draw(n_outputs, width))
    for actual, expected, inputs in products_of(rows, weight, draw):
        assert_rounded(actual, expected, weight, inputs, *ROUNDED_TO[quantization])


@pytest.mark.parametrize("quantization", QUANTIZED)
@pytest.mark.parametrize("rows", [2, 3, 5, 32])
@pytest.mark.parametrize("width", [65, 100, 130, 512, 701])
def test_products_of_several_rows_of_inputs(
    width: int, rows: int, quantization: str, draw: Callable[..., Tensor]
) -> None:
    x, bias, y = draw(rows, width), draw(width), draw(rows, width)
    weights, weight = QUANTIZED[quantization](draw(width, width))
    before = y.clone()
    program = Program()
    program.matvec(Stream(0), weights, bias, Stream(1), "a", adds=True)
    program.bind((x.data_ptr(), y.data_ptr()), [], 0, width=width)
    run([program], rows=rows)
    expected = before + F.linear(x, weight, bias)
    for b in range(rows):
        assert_rounded(y[b], expected[b], weight, x[b : b + 1], *ROUNDED_TO[quantization])


@pytest.mark.parametrize("quantization", QUANTIZED)
@pytest.mark.parametrize("width", [65, 200])
def test_several_rows_of_a_quantised_sparse_ff_are_what_each_is_alone(
    width: int, quantization: str, draw: Callable[..., Tensor]
) -> None:
    n_rows, N, rank, rows = 11, 16, 8, 3
    controller = (quantized_to_int8(draw(rank, width))[0], quantized_to_int8(draw(n_rows * N, rank))[0])
    w1, w2 = draw(n_rows * N, width), draw(n_rows * N, width)
    r1, r2 = (QUANTIZED[quantization](weight)[0] for weight in (w1, w2))
    if quantization == "int8":
        r2 = Rows8(pack_rows(*quantize_rows(w2)), r2.scale)
    normed, _ = normed_stream(draw, width)
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
    rows, weight = quantized_to_int8(draw(9, 1100))
    x, y = draw(1, 1100) * torch.logspace(-12, 3, 1100), torch.empty(9)
    program = Program()
    program.matvec(x, rows, None, y, "a")
    run_alone(program)
    assert_rounded(y, weight @ x[0], weight, x)
    x[:, 512:] = 0.0
    run_alone(program)
    assert_rounded(y, weight @ x[0], weight, x)


@pytest.mark.parametrize("large", [0.0, 1e-44, 1e-36, 1e-30, 1e33])
def test_int8_weights_take_inputs_of_any_size(large: float) -> None:
    rows, weight = quantized_to_int8(torch.full((3, 40), 0.25))
    x, y = torch.zeros(1, 40), torch.empty(3)
    x[0, 7] = large
    program = Program()
    program.matvec(x, rows, None, y, "a")
    run_alone(program)
    assert_close(y, weight[:, 7] * (large if large > 1e-34 else 0.0), ROUNDED_INPUTS)


@pytest.mark.parametrize("quantization", QUANTIZED)
@pytest.mark.parametrize("strange", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("at", [0, 33, 39])
def test_quantised_weights_pass_on_what_is_no_number(strange: float, at: int, quantization: str) -> None:
    rows, _ = QUANTIZED[quantization](torch.ones(3, 40))
    x, y = torch.ones(1, 40), torch.empty(3)
    x[0, at] = strange
    program = Program()
    program.matvec(x, rows, None, y, "a")
    run_alone(program)
    assert bool(y.isnan().all())


@pytest.mark.parametrize("large", [0.0, 1e-30, 1e30])
def test_int4_weights_take_inputs_of_any_size(large: float, draw: Callable[..., Tensor]) -> None:
    rows, weight = quantized_to_int4(draw(5, 300))
    x, y = large * draw(1, 300), torch.empty(5)
    program = Program()
    program.matvec(x, rows, None, y, "a")
    run_alone(program)
    assert_rounded(y, x[0] @ weight.t(), weight, x, *ROUNDED_TO["int4"])


@pytest.mark.parametrize("largest", [32639.0, -32639.0])
def test_int4_products_are_exact_where_float32_is(largest: float) -> None:
    """Each of the 15 numbers in every place of a unit, times whole numbers of up to 15 bits that leave no rounding."""
    q = (torch.arange(15 * 128).view(15, 128) * 7 % 15 - 7).float()
    q[:, ::64] = 7.0  # so that the scale of every group is 1
    rows, weight = quantized_to_int4(q)
    assert torch.equal(weight, q)
    x, y = (torch.arange(128) * 7919 % 65279 - 32639).float()[None], torch.empty(15)
    x[0, 3] = x[0, 64] = largest
    program = Program()
    program.matvec(x, rows, None, y, "a")
    run_alone(program)
    assert torch.equal(y, (q.double() @ x[0].double()).float())


def test_the_largest_integers_of_a_whole_block_are_added_without_overflow() -> None:
    rows, weight = quantized_to_int8(torch.ones(2, 5120))
    x, y = torch.full((1, 5120), -3.0), torch.empty(2)
    program = Program()
    program.matvec(x, rows, None, y, "a")
    run_alone(program)
    assert_close(y, (x.double() @ weight.double().t())[0].float(), ROUNDING)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("quantization", QUANTIZED)
@pytest.mark.parametrize(
    ("width", "n_rows", "N", "rank"), [(40, 1, 4, 3), (64, 6, 64, 16), (100, 29, 24, 33), (1024, 17, 128, 8)]
)
def test_sparse_ff_of_quantised_weights(
    width: int, n_rows: int, N: int, rank: int, quantization: str, biased: bool, draw: Callable[..., Tensor]
) -> None:
    of_controller = [draw(rank, width), draw(n_rows * N, rank)]
    of_rows = [draw(n_rows * N, width), draw(n_rows * N, width)]
    (r1, c1), (r2, c2) = (quantized_to_int8(weight) for weight in of_controller)
    (r3, w1), (r4, w2) = (QUANTIZED[quantization](weight) for weight in of_rows)
    c_bias, b2, x = draw(n_rows * N), draw(width), draw(1, width)
    normed, norm = normed_stream(draw, width)
    h = norm(x)
    row_G = (c2 @ (c1 @ h[0]) + c_bias).view(n_rows, N).argmax(1) + N * torch.arange(n_rows)
    b1 = draw(n_rows * N) if biased else None
    expected = x + (w1[row_G] @ h[0] + (0 if b1 is None else b1[row_G])).relu() @ w2[row_G] + b2
    program = Program()
    if quantization == "int8":
        r4 = Rows8(pack_rows(*quantize_rows(of_rows[1])), r4.scale)
    program.sparse_ff_quantized(normed, (r1, r2), (r3, r4), (c_bias, b2), N, Stream(0), b1)
    run_alone(program, x)
    assert torch.equal(buffer("row", n_rows, torch.int64)[0], row_G)
    assert_close(x, expected, ROUNDED_INPUTS)


def columns_of(weight: Tensor) -> tuple[Columns8, Tensor]:
    """Weights for the kernels with a scale a column, and the weights that they stand for."""
    q, scale = quantize_columns(weight)
    return Columns8(q, scale.float()), q * scale.float()


@pytest.mark.parametrize(
    ("S", "vectors", "positions", "modules"),
    [(3, 1, 3, (3, 3, 1)), (8, 2, 1, (3, 1)), (16, 4, 3, (3, 3, 1)), (9, 3, 5, (5, 5, 5)), (11, 5, 3, (3,))],
)
def test_modules_of_int8_weights(
    S: int, vectors: int, positions: int, modules: tuple[int, ...], draw: Callable[..., Tensor]
) -> None:
    m, length = vectors * lanes(), 12
    width = S * m
    (gate8, gate), (proj8, proj) = quantized_to_int8(draw(S, width)), columns_of(draw(width, m) / width**0.5)
    kernels8 = [columns_of(draw(positions, k, m, m) / (positions * k * m) ** 0.5) for k in modules]
    bias, biases = draw(S * m), [draw(m) for _ in modules]
    x_LD = draw(length, width) * torch.logspace(-3, 3, length).unsqueeze(1)
    normed, norm = normed_stream(draw, width)
    shared = multiplicative(norm(x_LD)[None], gate, proj, bias).unflatten(-1, (S, m))
    expected = [module_convolution(shared, kernel, b) for (_, kernel), b in zip(kernels8, biases, strict=True)]
    recent = RecentInputs(1, positions, S, m, max(modules) // 2, gate, Position())
    y = torch.full((len(modules) * S * m,), torch.nan)
    program = Program()
    convolutions = [(kernel, b) for (kernel, _), b in zip(kernels8, biases, strict=True)]
    program.modules(normed, (gate8, proj8, bias), convolutions, y, lambda cache: cache)
    for i, x in enumerate(x_LD):
        run_alone(program, x[None].clone(), cache=recent)
        for c, part in enumerate(y.view(len(modules), S, m)):
            assert_close(part, expected[c][0, i], ROUNDED_INPUTS, f"convolution {c}, token {i}")


@pytest.mark.parametrize("m_vectors", [1, 40])
def test_the_largest_integers_of_modules_are_added_without_overflow(m_vectors: int) -> None:
    """Inputs and weights that are all alike, and all as large as there are: the sums are exact but for float32's."""
    S, m = 2, m_vectors * lanes()
    gate, proj, kernel = torch.ones(S, S * m), torch.full((S * m, m), -0.5), torch.full((1, 1, m, m), 0.25)
    (gate8, _), (proj8, _), (kernel8, _) = quantized_to_int8(gate), columns_of(proj), columns_of(kernel)
    recent = RecentInputs(1, 1, S, m, 0, gate, Position())
    normed = Normed(Stream(0), torch.zeros(S * m), torch.full((S * m,), 3.0), EPS)
    y = torch.empty(S * m)
    program = Program()
    program.modules(normed, (gate8, proj8, torch.zeros(S * m)), [(kernel8, torch.ones(m))], y, lambda cache: cache)
    run_alone(program, torch.ones(1, S * m), cache=recent)
    h = dequantize_rows(gate8.q, gate8.scale)[0, 0] * (proj8.q * proj8.scale)[0, 0] * 3.0 * S * m
    expected = 1 + h * (kernel8.q * kernel8.scale)[0, 0, 0, 0] * m
    assert_close(y, expected.expand(S * m).clone(), ROUNDING)


@pytest.mark.parametrize("strange", [torch.inf, torch.nan])
def test_modules_of_int8_weights_pass_on_what_is_no_number(strange: float, draw: Callable[..., Tensor]) -> None:
    S, m = 3, lanes()
    gate8, proj8 = quantized_to_int8(draw(S, S * m))[0], columns_of(draw(S * m, m))[0]
    kernel8, bias = columns_of(draw(1, 1, m, m))[0], draw(S * m)
    bias[1] = strange  # of the first module
    recent = RecentInputs(1, 1, S, m, 0, bias, Position())
    normed, _ = normed_stream(draw, S * m)
    y = torch.empty(S * m)
    program = Program()
    program.modules(normed, (gate8, proj8, bias), [(kernel8, draw(m))], y, lambda cache: cache)
    run_alone(program, draw(1, S * m), cache=recent)
    assert bool(y[:m].isnan().all())
    assert bool(y[m:].isfinite().all())


def test_weights_of_modules_are_all_in_int8_or_none(draw: Callable[..., Tensor]) -> None:
    m = lanes()
    normed, _ = normed_stream(draw, 2 * m)
    gate8, proj8 = quantized_to_int8(draw(2, 2 * m))[0], columns_of(draw(2 * m, m))[0]
    with pytest.raises(NotCompiledError, match="Some weights in int8"):
        Program().modules(
            normed, (gate8, proj8, draw(2 * m)), [(draw(1, 1, m, m), draw(m))], draw(2 * m), lambda cache: cache
        )


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("width", [50, 512, 1100])
@pytest.mark.parametrize(("S", "m"), [(1, 40), (2, 300), (4, 64), (7, 129), (8, 96), (11, 33)])
def test_blocked_product_of_int8_weights(S: int, m: int, width: int, rows: int, draw: Callable[..., Tensor]) -> None:
    (gate8, gate), (proj8, proj) = quantized_to_int8(draw(S, width)), columns_of(draw(width, m))
    x, y = draw(rows, width), buffer("logits", S * m)
    blocks = in_blocks(proj8.q)
    scale = F.pad(proj8.scale, (0, blocks.shape[0] * blocks.shape[2] - m))
    program = Program()
    program.blocked_product(Stream(0), gate8, Columns8(blocks, scale), m, y)
    program.bind((x.data_ptr(),), [], 0, width=width)
    run([program], rows=rows)
    assert_close(y[:rows].clone(), multiplicative(x, gate, proj), ROUNDED_INPUTS)


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
    run_alone(program, x)
    assert_close(x, torch.full((1, width), 1.0 + 2 * 0.5 * width), ROUNDED_INPUTS)

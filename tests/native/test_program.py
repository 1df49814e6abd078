"""Every kernel gives what PyTorch's operations give, on any number of threads and at sizes that are no round ones."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from efftx.layers.cache import Position, RecentInputs
from efftx.native.library import kernels
from efftx.native.program import LONGEST, MOST_ROWS, Hashed, Normed, NotCompiledError, Program, Stream, buffer, run
from efftx.ops.attention import unit_key
from efftx.ops.module_convolution import module_convolution
from efftx.ops.multiplicative import in_blocks, multiplicative
from efftx.ops.sparse_ff import hashed_units_naive
from efftx.ops.sru import sru
from tests.native.programs import EPS, lanes, normed_stream, products_of, run_alone
from tests.tolerances import ROUNDING, assert_close

pytestmark = [
    pytest.mark.skipif(kernels() is None, reason="no C++ compiler"),
    pytest.mark.usefixtures("threads"),
]


@pytest.mark.parametrize("n_outputs", [1, 4, 7, 130])
@pytest.mark.parametrize("width", [1, 15, 16, 100, 512, 1000])
def test_matvec(width: int, n_outputs: int, draw: Callable[..., Tensor]) -> None:
    weight = draw(n_outputs, width)
    for actual, expected, _ in products_of(weight, weight, draw):
        assert_close(actual, expected, ROUNDING)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("width", "n_rows", "vectors", "rank"), [(40, 1, 1, 3), (64, 6, 4, 16), (100, 13, 5, 33), (1024, 9, 8, 8)]
)
def test_sparse_ff(width: int, n_rows: int, vectors: int, rank: int, biased: bool, draw: Callable[..., Tensor]) -> None:
    N = vectors * lanes()
    c1, c2, c_bias = draw(rank, width), draw(n_rows * N, rank), draw(n_rows * N)
    w1, w2, b2, x = draw(n_rows * N, width), draw(n_rows * N, width), draw(width), draw(1, width)
    normed, norm = normed_stream(draw, width)
    h = norm(x)
    row_G = (c2 @ (c1 @ h[0]) + c_bias).view(n_rows, N).argmax(1) + N * torch.arange(n_rows)
    b1 = draw(n_rows * N) if biased else None
    expected = x + (w1[row_G] @ h[0] + (0 if b1 is None else b1[row_G])).relu() @ w2[row_G] + b2
    program = Program()
    program.sparse_ff(normed, [c1, c2, c_bias, w1, w2, b2], N, Stream(0), b1)
    run_alone(program, x)
    assert torch.equal(buffer("row", n_rows, torch.int64)[0], row_G)
    assert_close(x, expected, ROUNDING)


TOKENS = torch.tensor([7, 31_999, 2**40 + 3])


@pytest.mark.parametrize("salt", [0, 3])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("width", "n_rows", "N"), [(40, 1, 16), (100, 29, 48)])
def test_a_hash_chooses_and_leans(
    width: int, n_rows: int, N: int, rows: int, salt: int, draw: Callable[..., Tensor]
) -> None:
    w1, w2, b2, x = draw(n_rows * N, width), draw(n_rows * N, width), draw(width), draw(rows, width)
    c1, c2, c_bias = draw(5, width), draw(n_rows * N, 5), draw(n_rows * N)
    normed, norm = normed_stream(draw, width)
    token_B, first = TOKENS[:rows], N * torch.arange(n_rows)
    hashed_BG = torch.tensor(hashed_units_naive(token_B.tolist(), n_rows, N, salt))
    logits_BGN = (norm(x) @ c1.t() @ c2.t() + c_bias).view(rows, n_rows, N)
    leaning_BGN = logits_BGN + 30.0 * F.one_hot(hashed_BG, N)
    assert n_rows == 1 or not torch.equal(leaning_BGN.argmax(-1), hashed_BG), "the controller decides somewhere"
    assert n_rows == 1 or not torch.equal(leaning_BGN.argmax(-1), logits_BGN.argmax(-1)), "and the hash elsewhere"
    for controller, row_BG in (([], hashed_BG + first), ([c1, c2, c_bias], leaning_BGN.argmax(-1) + first)):
        y, hidden = x.clone(), torch.einsum("bd,bgd->bg", norm(x), w1[row_BG]).relu()
        program = Program()
        program.sparse_ff(normed, [*controller, w1, w2, b2], N, Stream(0), None, Hashed(salt, 30.0))
        program.bind((y.data_ptr(),), [], 0, width=width, token_B=token_B)
        run([program], rows=rows)
        assert program.reads_tokens
        assert torch.equal(buffer("row", n_rows, torch.int64).flatten()[: rows * n_rows].view(rows, -1), row_BG)
        assert_close(y, x + torch.einsum("bg,bgd->bd", hidden, w2[row_BG]) + b2, ROUNDING)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("width", "n_rows", "N"), [(40, 1, 4), (100, 29, 7), (1024, 16, 16)])
def test_largest_rows(width: int, n_rows: int, N: int, rows: int, draw: Callable[..., Tensor]) -> None:
    hidden, w2 = buffer("of a test", n_rows * N), draw(n_rows * N, width)
    b2, x = draw(width), draw(rows, width)
    hidden[:rows] = draw(rows, n_rows * N) - 2.0
    hidden[:, 2] = hidden[:, N - 1] = 5.0  # the first of equals
    largest, index = hidden[:rows].view(rows, n_rows, N).max(-1)
    assert n_rows == 1 or bool((largest < 0).any()), "what is rectified"
    assert bool((index[:, 0] == 2).all())
    row = index + N * torch.arange(n_rows)
    y, program = x.clone(), Program()
    program.largest_rows(hidden, w2, b2, N, Stream(0))
    program.bind((y.data_ptr(),), [], 0, width=width)
    run([program], rows=rows)
    assert_close(y, x + torch.einsum("bg,bgd->bd", largest.relu(), w2[row]) + b2, ROUNDING)


def test_of_equal_units_the_first_is_chosen_and_no_other_row_is_read(draw: Callable[..., Tensor]) -> None:
    N, width = 3 * lanes(), 24
    c_bias = torch.zeros(2, N)
    c_bias[0, [N - 1, 5, N // 2]] = 1.0
    c_bias[1, [lanes() + 1, 2 * lanes()]] = 1.0
    w1, w2 = torch.full((2 * N, width), torch.nan), torch.full((2 * N, width), torch.nan)
    for row in (5, N + lanes() + 1):
        w1[row], w2[row] = 1.0, 0.5
    x = torch.ones(1, width)
    normed = Normed(Stream(0), torch.zeros(width), torch.ones(width), EPS)
    parameters = [torch.zeros(4, width), torch.zeros(2 * N, 4), c_bias.flatten(), w1, w2, torch.zeros(width)]
    program = Program()
    program.sparse_ff(normed, parameters, N, Stream(0))
    run_alone(program, x)
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
    m, length = vectors * lanes(), 40  # more tokens than the buffer of the past has places
    gate, proj, bias = draw(S, width), draw(width, m) / width**0.5, draw(S * m)
    weights = [(draw(positions, k, m, m) / (positions * k * m) ** 0.5, draw(m)) for k in modules]
    x_LD = draw(length, width)
    normed, norm = normed_stream(draw, width)
    shared = multiplicative(norm(x_LD)[None], gate, proj, bias).unflatten(-1, (S, m))
    expected = [module_convolution(shared, kernel, b) for kernel, b in weights]
    recent = RecentInputs(1, positions, S, m, max(modules) // 2, gate, Position())
    y = torch.empty(len(modules) * S * m)
    program = Program()
    program.modules(normed, (gate, proj, bias), weights, y, lambda cache: cache)
    for i, x in enumerate(x_LD):
        run_alone(program, x[None].clone(), cache=recent)
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
        run_alone(program, x_1D)
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
        run_alone(program)
        assert_close(k[0, :, n], unit_key(q.view(n_heads, d)), ROUNDING, "key")
        seen = slice(0, max(n, 1))
        expected = F.scaled_dot_product_attention(q.view(1, n_heads, 1, d), k[:, :, seen], v[:, :, seen], scale=1.0)
        assert_close(out, expected.flatten(), ROUNDING, f"place {n}")


@pytest.mark.parametrize(("S", "m"), [(1, 40), (2, 1000), (4, 64), (7, 129), (8, 96), (11, 33)])
def test_blocked_product(S: int, m: int, draw: Callable[..., Tensor]) -> None:
    gate, proj, x, y = draw(S, 50), draw(50, m), draw(1, 50), torch.empty(S * m)
    program = Program()
    program.blocked_product(Stream(0), gate, in_blocks(proj), m, y)
    run_alone(program, x)
    assert_close(y, multiplicative(x, gate, proj)[0], ROUNDING)


@pytest.mark.parametrize("n", [1, 7, 130, 100_003])
def test_sum(n: int, draw: Callable[..., Tensor]) -> None:
    x, y = draw(n).abs(), torch.empty(1)
    program = Program()
    program.sum(x, y)
    run_alone(program)
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
        run_alone(program, cache=state)
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
    normed, _ = normed_stream(draw, 8)
    with pytest.raises(NotCompiledError, match="float32"):
        program.matvec(x, draw(4, 8).double(), None, x, "a")
    with pytest.raises(NotCompiledError, match="float32"):
        program.matvec(x, draw(8, 4).t(), None, x, "a")
    units = 2 * (lanes() + 1)
    parameters = [draw(2, 8), draw(units, 2), draw(units), draw(units, 8), draw(units, 8), draw(8)]
    with pytest.raises(NotCompiledError, match="whole vectors"):
        program.sparse_ff(normed, parameters, lanes() + 1, Stream(0))
    with pytest.raises(NotCompiledError, match="Modules"):
        program.modules(normed, (draw(2, 8), draw(8, 3), draw(6)), [(draw(3, 1, 3, 3), draw(3))], x, lambda c: c)
    with pytest.raises(NotCompiledError, match="columns"):
        program.blocked_product(x, draw(2, 8), draw(1, 8, 3), 3, x)
    for _ in range(LONGEST - program.n_ops):
        program.matvec(x, draw(8, 8), None, x, "a")
    with pytest.raises(NotCompiledError, match=f"More than {LONGEST}"):
        program.matvec(x, draw(8, 8), None, x, "a")


@pytest.mark.parametrize("rows", [2, 3, 4, 5, MOST_ROWS])
@pytest.mark.parametrize("width", [1, 15, 100, 1023, 1024, 1100, 2200])
def test_products_of_several_rows_of_inputs(width: int, rows: int, draw: Callable[..., Tensor]) -> None:
    for n_outputs in (1, 4, 11, 26):
        weight, bias, y = draw(n_outputs, width), draw(n_outputs), draw(rows, n_outputs)
        normed, norm = normed_stream(draw, width)
        x = draw(rows, width)
        room = torch.zeros(rows, max(width, n_outputs))  # streams have one step
        inputs, outputs = room.clone(), room.clone()
        inputs[:, :width], outputs[:, :n_outputs] = x, y
        program = Program()
        program.matvec(normed, weight, bias, Stream(1), "a", adds=True)
        program.bind((inputs.data_ptr(), outputs.data_ptr()), [], 0, width=room.shape[1])
        run([program], rows=rows)
        assert_close(outputs[:, :n_outputs], y + F.linear(norm(x), weight, bias), ROUNDING)


def test_python_and_the_kernels_agree_on_the_most_rows() -> None:
    found = kernels()
    assert found is not None
    assert found.most_rows == MOST_ROWS

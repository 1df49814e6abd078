"""A single row's programs of kernels give what PyTorch's operations give, wherever a block has one, and only there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from efftx.config.compose import compose
from efftx.decoding.programs import KernelLogits, logits_of, step_blocks
from efftx.decoding.quantization import QUANTIZATIONS, Quantization
from efftx.decoding.quantized import QuantizedLinear
from efftx.decoding.session import CachedSession, PreparedModel
from efftx.layers.cache import Position
from efftx.layers.settings import SparseLossConfig
from efftx.layers.sparse_loss import SparseLoss
from efftx.models.block import ALONE
from efftx.models.build import build_model
from efftx.native.library import kernels
from efftx.native.program import MOST_ROWS, run
from tests.tolerances import ROUNDED_INPUTS, ROUNDING, assert_close, relative_error

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C++ compiler")

VOCABULARY = 29
COMMON = ("size=smoke", "data=stdlib", "data.length=64", "dropout=0", "n_heads=4", "positions.kind=sinusoidal")
SPARSE = ("sparse_ff.N=64", "sparse_qkv.S=4", "d_ff=512", "d_ff_rule=given")
DECODERS = {
    "transformer": ("model=transformer",),
    "shared QK": ("model=transformer", "share_qk=true"),
    "local": ("model=transformer", "attention=[local]", "local.chunk_len=8", "share_qk=true"),
    "reversible, three branches": (
        "model=reformer",
        "attention=[full]",
        "n_layers=3",
        "attention_per_block=2",
        "chunking.ff=0",
    ),
    "sparse": ("model=scaling", "stack=decoder", *SPARSE),
    "sparse, shared QK": ("model=scaling", "stack=decoder", "share_qk=true", *SPARSE),
    "the paper's sparse FF": ("model=scaling", "stack=decoder", "sparse_ff.form=paper", *SPARSE),
    "frozen": ("model=scaling", "stack=decoder", "sparse_ff.controller=frozen", *SPARSE),
    "oracle": ("model=scaling", "stack=decoder", "sparse_ff.controller=oracle", *SPARSE),
    "token bias": ("model=scaling", "stack=decoder", "sparse_ff.token_bias=1", *SPARSE),
    "by token": ("model=scaling", "stack=decoder", "sparse_ff.controller=token", *SPARSE),
    "dense output": ("model=scaling", "stack=decoder", "sparse_qkv.output=dense", *SPARSE),
    "paper's kernel": ("model=scaling", "stack=decoder", "sparse_qkv.kernel=paper", *SPARSE),
    "SRU": ("model=transformer", "sru.n_layers=2", "sru.d=8"),
}
PAIRS = {
    "cross-attention": ("model=scaling", "sparse_ff.N=0", "sparse_qkv.S=0"),
    "sparse": ("model=scaling", *SPARSE),
    "sparse query": ("model=scaling", "sparse_qkv.cross=query", *SPARSE),
    "Terraformer": ("model=terraformer", "attention=[full]", *SPARSE),
    "Terraformer, short": ("model=terraformer", "lsh.full_below=100", *SPARSE),
}
WITHOUT = {
    "gelu": ("model=transformer", "activation=gelu"),
    "narrow": ("model=transformer", "d_model=64"),
    "blocks of 4": ("model=scaling", "stack=decoder", "sparse_ff.N=4", "sparse_qkv.S=0"),
    "the input in the values": ("model=scaling", "stack=decoder", "sparse_qkv.concat_input=true", *SPARSE),
    "multiplied": ("model=scaling", "stack=decoder", "sparse_ff.multiply_by_controller=true", *SPARSE),
    "multiplicative output": ("model=scaling", "stack=decoder", "sparse_qkv.output=multiplicative", *SPARSE),
}
INPUTS = torch.tensor([[4, 9, 2, 7, 7, 1]])


def _prepared(overrides: Sequence[str], *, quantization: Quantization | None = None) -> PreparedModel:
    return PreparedModel(_model(overrides), quantization=quantization)


def _model(overrides: Sequence[str]) -> Any:
    wide = [] if any(word.startswith("d_model=") for word in overrides) else ["d_model=128"]
    config = compose([*COMMON, *wide, *overrides])
    model = build_model(config, VOCABULARY, torch.device("cpu"), torch.float32).eval()
    generator = torch.Generator().manual_seed(6)  # at 5 two units of an oracle are equal but for what int16 rounds
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def _programs(prepared: PreparedModel) -> list[bool]:
    return [block.program is not None for block in prepared.blocks]


def _logits(prepared: PreparedModel, *inputs: Tensor, prompt: int = 3, n: int = 38) -> Tensor:
    tokens = torch.randint(1, VOCABULARY, (prompt + n,), generator=torch.Generator().manual_seed(1))
    session = CachedSession(prepared, prompt + n + 1, 1, *inputs)
    session.start([tokens[:prompt].tolist()])
    return torch.stack([session.step(token[None])[0] for token in tokens[prompt:]])


def _without_kernels(
    monkeypatch: pytest.MonkeyPatch, overrides: Sequence[str], *, quantization: Quantization | None = None
) -> PreparedModel:
    with monkeypatch.context() as patched:
        patched.setattr("efftx.native.program.kernels", lambda: None)
        prepared = _prepared(overrides, quantization=quantization)
    assert not any(_programs(prepared))
    return prepared


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_gives_the_same_with_programs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = _prepared(DECODERS[name])
    assert all(_programs(prepared))
    assert_close(_logits(prepared), _logits(_without_kernels(monkeypatch, DECODERS[name])), ROUNDING)


@pytest.mark.parametrize("inputs", [INPUTS, torch.tensor([[4, 9, 2, 0, 0, 0]])], ids=["whole", "padded"])
@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_gives_the_same_with_programs(name: str, inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = _prepared(PAIRS[name])
    assert all(_programs(prepared))
    expected = _logits(_without_kernels(monkeypatch, PAIRS[name]), inputs)
    assert_close(_logits(prepared, inputs), expected, ROUNDING)


def test_under_autocast_the_encoder_s_keys_have_the_type_that_the_kernel_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    without = _without_kernels(monkeypatch, PAIRS["cross-attention"])
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = (_logits(each, INPUTS) for each in (without, _prepared(PAIRS["cross-attention"])))
    assert relative_error(found.float(), expected.float()) < 0.02, "what bfloat16 rounds, and no other numbers"


@pytest.mark.parametrize("name", WITHOUT)
def test_what_the_kernels_do_not_have_is_stepped_without_them(name: str) -> None:
    assert not any(_programs(_prepared(WITHOUT[name])))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize(
    ("words", "inputs"),
    [*((words, None) for words in DECODERS.values()), *((words, INPUTS) for words in PAIRS.values())],
    ids=[*DECODERS, *(f"{name}, a pair" for name in PAIRS)],
)
def test_quantised_weights_give_the_same_with_programs(
    words: Sequence[str], inputs: Tensor | None, quantization: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as the products of the dequantised weights in float32; PyTorch's kernel rounds inputs to bfloat16."""
    pair = () if inputs is None else (inputs,)
    prepared = _prepared(words, quantization=quantization)
    assert all(_programs(prepared))
    assert isinstance(prepared.logits, KernelLogits) == isinstance(prepared.lm_head, QuantizedLinear)
    without = _without_kernels(monkeypatch, words, quantization=quantization)
    monkeypatch.setattr("efftx.ops.int8._product_kernel", None)
    assert_close(_logits(prepared, *pair), _logits(without, *pair), ROUNDED_INPUTS)


@pytest.mark.parametrize("name", sorted(set(WITHOUT) - {"narrow", "blocks of 4"}))
def test_what_the_kernels_do_not_have_is_stepped_without_them_quantised_too(name: str) -> None:
    assert not any(_programs(_prepared(WITHOUT[name], quantization="int8")))


def test_blocks_with_and_without_a_program_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("model=reformer", "attention=[full,local]", "n_layers=5", "local.chunk_len=8", "chunking.ff=0")
    expected = _logits(_without_kernels(monkeypatch, overrides))
    prepared = _prepared(overrides)
    for i in (1, 4):
        prepared.blocks[i] = prepared.blocks[i]._replace(program=None)
    assert_close(_logits(prepared), expected, ROUNDING)


@pytest.mark.parametrize(("full_below", "by_program"), [(0, False), (63, False), (100, True)])
def test_hash_attention_has_a_program_where_nothing_is_hashed(full_below: int, by_program: bool) -> None:
    prepared = _prepared(("model=reformer", "attention=[lsh]", f"lsh.full_below={full_below}", "chunking.ff=0"))
    n_runs = 0
    for block in prepared.blocks:
        bind = block.program.bind

        def counted(*given, bind=bind, **width) -> None:
            nonlocal n_runs
            n_runs += 1
            bind(*given, **width)

        block.program.bind = counted
    session = CachedSession(prepared, 64, 1)
    session.start([[1, 2]])
    assert session.step(torch.tensor([1])).isfinite().all()
    assert n_runs == (len(prepared.blocks) if by_program else 0)


def _logits_of_rows(
    prepared: PreparedModel, rows: int, *inputs: Tensor, n: int = 38, only: int | None = None
) -> Tensor:
    """Logits (n, rows, vocabulary) of rows of tokens; of a single one of them, which is then decoded alone."""
    tokens = torch.randint(1, VOCABULARY, (3 + n, rows), generator=torch.Generator().manual_seed(2))
    if only is not None:
        tokens = tokens[:, only : only + 1]
    inputs = tuple(given.expand(tokens.shape[1], -1).contiguous() for given in inputs)
    session = CachedSession(prepared, n + 4, tokens.shape[1], *inputs)
    session.start(tokens[:3].t().tolist())
    return torch.stack([session.step(token) for token in tokens[3:]])


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
@pytest.mark.parametrize("rows", [2, 5, MOST_ROWS])
@pytest.mark.parametrize(
    ("words", "inputs"),
    [*((words, None) for words in DECODERS.values()), *((words, INPUTS) for words in PAIRS.values())],
    ids=[*DECODERS, *(f"{name}, a pair" for name in PAIRS)],
)
def test_a_few_rows_give_the_same_with_programs(
    words: Sequence[str],
    inputs: Tensor | None,
    rows: int,
    quantization: Quantization | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = () if inputs is None else (inputs,)
    prepared, calls = _prepared(words, quantization=quantization), []

    def counted(*given: Any, rows: int = 1) -> None:
        calls.append(rows)
        run(*given, rows=rows)

    with monkeypatch.context() as patched:
        patched.setattr("efftx.decoding.programs.run", counted)
        found = _logits_of_rows(prepared, rows, *pair)
    assert set(calls) == {rows}
    if quantization:  # where two units are nearly as large, another rounding of the inputs may choose the other
        last = _logits_of_rows(prepared, rows, *pair, only=rows - 1)
        assert_close(found[:, -1:], last, ROUNDED_INPUTS)
    else:
        assert_close(found, _logits_of_rows(_without_kernels(monkeypatch, words), rows, *pair), ROUNDING)


def test_more_rows_than_the_kernels_take_are_stepped_without_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = _prepared(DECODERS["sparse"])
    monkeypatch.setattr("efftx.decoding.programs.run", None)
    assert _logits_of_rows(prepared, MOST_ROWS + 1, n=2).isfinite().all()


def test_what_is_given_to_the_stack_is_not_written_to() -> None:
    """Programs write to the streams: to copies of what they are given."""
    prepared, position = _prepared(DECODERS["transformer"]), Position(1)
    x_B1D = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1))
    before = x_B1D.clone()
    with torch.inference_mode():
        caches = [[branch.new_cache(1, 4, x_B1D, position) for branch in b.block.branches()] for b in prepared.blocks]
        (y_B1D,) = step_blocks(prepared.blocks, (x_B1D,), caches, position, ALONE)
    assert torch.equal(x_B1D, before)
    assert not torch.equal(y_B1D, before)


@pytest.mark.parametrize("batch", [1, 3, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize(
    ("name", "has_kernel"),
    [
        ((24, 30, 3), False),
        ((40, 4096, 4), True),
        ((40, 3 * 1030, 3), True),  # the last block of columns is not full
        ((40, 3 * 1030 - 1, 3), True),  # a surplus of outputs
        ((72, 16 * 1024, 16), False),
    ],
    ids=str,
)
def test_logits_by_the_kernel_are_what_the_layer_gives(
    name: tuple[int, int, int], has_kernel: bool, batch: int
) -> None:
    d_in, d_out, S = name
    generator = torch.Generator().manual_seed(0)
    layer = SparseLoss(SparseLossConfig(S=S), d_in, d_out)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=generator)
        logits, h_BD = logits_of(layer), torch.randn(batch, d_in, generator=generator)
        assert isinstance(logits, KernelLogits) == has_kernel
        expected = layer(h_BD)
        first = logits(h_BD)
        assert_close(first, expected, ROUNDING)
        with torch.inference_mode():
            logits(-h_BD)
        assert_close(first, expected, ROUNDING)  # nothing of it is written over
        assert_close(logits(h_BD[:, None]), expected[:, None], ROUNDING)


def test_joined_weights_are_the_models_own() -> None:
    model: Any = _model(DECODERS["transformer"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    PreparedModel(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    q, k = (getattr(model.blocks[0].attention.core.project, which).weight for which in "qk")
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["transformer", "sparse"])
@pytest.mark.parametrize(("quantization", "near"), [("int8", 0.1), ("int4", 0.5)])
def test_quantised_weights_come_near_and_leave_the_model_as_it_was(
    quantization: Quantization, near: float, name: str, batch: int
) -> None:
    model = _model(DECODERS[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits = []
    for how in (None, quantization):
        session = CachedSession(PreparedModel(model, quantization=how), 10, batch)
        session.start([[3, 4, 5]] * batch)
        logits.append(torch.stack([session.step(torch.full((batch,), t)) for t in (6, 7, 8)]))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    distance = (logits[1] - logits[0]).norm() / logits[0].norm()
    assert 0 < distance < near

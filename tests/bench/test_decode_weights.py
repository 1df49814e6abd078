"""Over which weights `efftx bench decode` measures: what a token reads of them, and how long before it comes again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from efftx.bench import decode
from efftx.bench.decode import Tokens, _with_context
from efftx.bench.decode_cases import MEMORY_TOKENS, Case, case_named
from efftx.bench.decode_weights import MARGIN, Weights, counted, make_weights
from efftx.decoding.programs import DecodingBlock
from efftx.decoding.quantization import QUANTIZATIONS, Quantization
from efftx.decoding.quantized import QuantizedSparseFF
from efftx.layers.sparse_ff import SparseFF
from efftx.models.build import build_on_meta
from tests.bench.runs import SMALL_CACHE, decoded

D, N_BLOCKS, VOCABULARY, FLOAT = 128, 6, 32_000, 4


def _of_dense_block(d_ff: int) -> dict[str, int]:
    return {
        "QKV": 3 * D * (D + 1),
        "output": D * (D + 1),
        "feed-forward": (D + 1) * d_ff + (d_ff + 1) * D,
        "everything else": 2 * 2 * D,
    }


def test_what_a_dense_token_reads_is_what_can_be_counted_by_hand() -> None:
    (row,) = decoded("names=width-128-dense", "context=16")["rows"]
    expected = {part: N_BLOCKS * n for part, n in _of_dense_block(4 * D).items()}
    expected["everything else"] += 2 * D + D  # the last norm, a row of the embedding
    expected["logits"] = VOCABULARY * (D + 1)
    found = row["components"]
    assert {part: found[part]["weights"] for part in expected} == expected
    assert {part: found[part]["bytes"] for part in expected} == {part: FLOAT * n for part, n in expected.items()}
    tokens = 4 + 3 + 1  # to warm up, in all, by part: the one in the middle counts
    keys_and_values = 2 * N_BLOCKS * (16 + tokens // 2) * D * FLOAT
    assert (found["attention"]["weights"], found["attention"]["bytes"]) == (0, keys_and_values)
    assert row["bytes"] == FLOAT * sum(expected.values()) + keys_and_values


def test_what_a_sparse_token_reads_is_one_row_of_every_block_and_all_of_the_rest() -> None:
    d_ff, n = 6 * D, 64
    rank = d_ff // n
    (row,) = decoded("names=width-128-sparse")["rows"]
    found = row["components"]
    controller = rank * D + d_ff * rank + d_ff
    chosen = 2 * (d_ff // n) * D + D
    assert found["controller"]["weights"] == N_BLOCKS * controller
    assert found["controller"]["bytes"] == FLOAT * N_BLOCKS * controller
    assert found["feed-forward"]["weights"] == N_BLOCKS * chosen
    assert found["feed-forward"]["bytes"] == FLOAT * N_BLOCKS * chosen
    case = case_named("width-128-sparse")
    model: Any = build_on_meta(case.config(), VOCABULARY)
    block = dict(model.blocks[0].named_parameters())
    attention = sum(p.numel() for name, p in block.items() if "attention.core" in name)
    assert attention > 0
    assert found["QKV"]["weights"] == N_BLOCKS * attention
    assert found["QKV"]["bytes"] == FLOAT * N_BLOCKS * attention


def test_tokens_of_a_batch_share_dense_weights_and_choose_rows_each() -> None:
    one, two = decoded("names=width-128-sparse", "batch=1,2")["rows"]
    for part in ("QKV", "controller", "logits", "everything else"):
        assert one["components"][part]["bytes"] == two["components"][part]["bytes"]
    assert two["components"]["attention"]["bytes"] == 2 * one["components"]["attention"]["bytes"]
    rows, bias = 2 * (6 * D // 64) * D, D  # one row a block of both matrices, and b2, which is read once
    for each, distinct_rows in ((one, 1), (two, 64 * (1 - (63 / 64) ** 2))):
        n_weights = N_BLOCKS * (distinct_rows * rows + bias)
        found = each["components"]["feed-forward"]
        assert found["weights"] == pytest.approx(n_weights, abs=1)
        assert found["bytes"] == pytest.approx(FLOAT * n_weights, abs=FLOAT)
    assert two["ratio_to_first"] == 1.0  # compared with its own batch


def test_tokens_of_a_batch_choose_int8_rows_with_their_scales_and_share_a_float_bias() -> None:
    one, two = decoded("names=width-128-sparse-int8", "batch=1,2")["rows"]
    bias = FLOAT * N_BLOCKS * D
    rows = [row["components"]["feed-forward"]["bytes"] - bias for row in (one, two)]
    assert rows[1] / rows[0] == pytest.approx(64 * (1 - (63 / 64) ** 2), abs=1 / rows[0])


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_rows_that_a_batch_reads_come_around_no_sooner_than_the_weights_of_a_token(batch: int) -> None:
    case, cache_bytes = case_named("width-128-sparse"), 2**24
    weights = make_weights(case, cache_bytes=cache_bytes, batch=batch)
    rows = sum(w.nbytes for w in _rows_of(_feed_forward(weights.blocks[0])))
    chosen = sum(read.bytes for read in weights.chosen.values()) / weights.n_blocks
    always = sum(read.bytes for read in weights.reads.values()) / weights.n_blocks - chosen
    share = 1 - (1 - chosen / rows) ** batch  # of the rows that `batch` tokens read
    apart = weights.n_distinct_row_sets * (always + share * rows) / share
    assert 2 < weights.n_distinct_row_sets < weights.n_distinct_blocks or batch == 1
    assert apart >= MARGIN * cache_bytes
    assert counted(case, cache_bytes, batch).distinct_bytes == weights.distinct_bytes


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
def test_tokens_of_a_batch_share_the_matrix_by_which_an_oracle_chooses(quantization: Quantization | None) -> None:
    words = ("model=scaling", "d_model=128", "n_heads=2", "d_ff=512", "sparse_ff.N=16", "sparse_qkv.S=0")
    case = Case("small", (*words, "sparse_ff.controller=oracle"), 3, quantization=quantization, vocab_size=64)
    weights = make_weights(case, cache_bytes=SMALL_CACHE)
    (chosen,) = weights.chosen.values()
    assert chosen.component == "feed-forward"
    assert chosen.weights == 3 * 512 // 16 * 128  # of W2; W1 is read whole
    assert weights.reads["feed-forward"].weights >= 3 * 512 * 128 + chosen.weights


@pytest.mark.parametrize(("quantization", "part_of_float"), [("int8", 8 / 32), ("int4", 4.25 / 32)])
def test_quantised_weights_are_a_part_of_what_is_read_and_a_set_of_rows_is_kept_once(
    quantization: Quantization, part_of_float: float
) -> None:
    names = [f"width-128-{kind}{how}" for kind in ("dense", "sparse") for how in ("", f"-{quantization}")]
    rows = decoded(f"names={','.join(names)}")["rows"]
    dense, small_dense, sparse, small_sparse = (row["components"] for row in rows)
    assert [row["quantization"] for row in rows] == [None, quantization, None, quantization]
    for part in ("QKV", "output", "feed-forward", "logits"):
        assert part_of_float < small_dense[part]["bytes"] / dense[part]["bytes"] < part_of_float + 0.03
        # Int8 has its scales beside the weights; those of int4 lie in its rows.
        assert 1 <= small_dense[part]["weights"] / dense[part]["weights"] < 1.02
    feed_forward, small = sparse["feed-forward"], small_sparse["feed-forward"]
    assert part_of_float < small["bytes"] / feed_forward["bytes"] < part_of_float + 0.05
    assert 1 <= small["weights"] / feed_forward["weights"] < 1.02
    qkv, small = sparse["QKV"], small_sparse["QKV"]  # in int8 beside int4 too; biases are in float
    assert 8 / 32 < small["bytes"] / qkv["bytes"] < 8 / 32 + 0.03
    assert 1 <= small["weights"] / qkv["weights"] < 1.02

    weights = make_weights(case_named(f"width-128-sparse-{quantization}"), cache_bytes=2**20)
    n_sets = weights.n_distinct_row_sets
    assert 0 < n_sets < weights.n_distinct_blocks
    of_blocks = [_rows_of(_feed_forward(block)) for block in weights.blocks]
    for i, tensors in enumerate(of_blocks):
        assert [t.data_ptr() for t in tensors] == [t.data_ptr() for t in of_blocks[i % n_sets]]
    assert len({tensors[0].data_ptr() for tensors in of_blocks}) == n_sets


def test_an_sru_stays_in_float_beside_int8() -> None:
    words = ("model=terraformer", "d_model=128", "n_heads=2", "d_ff=512", "sparse_ff.N=16", "sparse_qkv.S=2")
    case = Case(
        "small", (*words, "sparse_loss.S=4", "sru.d=8", "lsh.full_below=16384"), 2, quantization="int8", vocab_size=64
    )
    weights = make_weights(case, cache_bytes=SMALL_CACHE)
    logits = _spied_logits(weights)
    model = Tokens(weights, case.config(), batch=2, context=8, room=4, seed=0)
    model.step_by_part()
    assert logits[0].isfinite().all()
    assert "SRU" in model.last_seconds()[0]


def _feed_forward(block: DecodingBlock) -> SparseFF | QuantizedSparseFF:
    (found,) = (layer for layer in block.block.modules() if isinstance(layer, (SparseFF, QuantizedSparseFF)))
    return found


def _rows_of(layer: SparseFF | QuantizedSparseFF) -> list[Tensor]:
    """The layer's matrices of which a token reads a few rows."""
    if isinstance(layer, QuantizedSparseFF):
        return list(layer.row_tensors())
    return [layer.w1.detach(), layer.w2.detach()]


def _spied_logits(weights: Weights) -> list[Tensor]:
    seen: list[Tensor] = []

    def spied(logits_of: Any) -> Any:
        def call(h_BD: Tensor) -> Tensor:
            seen.append(logits_of(h_BD))
            return seen[-1]

        return call

    weights.heads = [(norm, spied(logits_of)) for norm, logits_of in weights.heads]
    return seen


@pytest.mark.parametrize("chosen_is_spoilt", [False, True])
def test_only_chosen_rows_are_read(chosen_is_spoilt: bool) -> None:
    case = case_named("width-128-sparse")
    weights = make_weights(case, cache_bytes=SMALL_CACHE)
    for block in weights.blocks:
        layer: Any = _feed_forward(block)
        layer.c_bias.data.view(-1, 64)[:, 0] = 1e6  # the first unit of every block of 64 is chosen, whatever the token
        matrices = _rows_of(layer)
        assert [tuple(t.shape) for t in matrices] == [(6 * D, D)] * 2
        for w_UD in matrices:
            is_other = torch.arange(w_UD.shape[0]) % 64 != 0
            w_UD[is_other] = torch.nan
            if chosen_is_spoilt:
                w_UD[0] = torch.nan
    logits = _spied_logits(weights)
    model = Tokens(weights, case.config(), batch=2, context=4, room=4, seed=0)
    for _ in range(3):
        model.step()
    assert all(one.isfinite().all() != chosen_is_spoilt for one in logits)


@pytest.mark.parametrize("name", ["width-128-dense", "width-128-sparse"])
@pytest.mark.parametrize("cache_bytes", [2**16, 2**20, 2**22])
def test_a_weight_is_read_again_only_when_eight_caches_have_been_read(
    name: str, cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_named(name)
    weights = make_weights(case, cache_bytes=cache_bytes)
    ring = weights.blocks
    assert len(ring) == weights.n_distinct_blocks
    branches = [branch for block in ring for branch in block.block.branches()]
    assert len({branch.norm.weight.data_ptr() for branch in branches}) == 2 * len(ring)
    assert len({norm.weight.data_ptr() for norm, _ in weights.heads}) == len(weights.heads)

    per_block = sum(FLOAT * read.weights for branch in branches[:2] for read in branch.weight_reads())
    read_so_far = [0]
    last: dict[int, int] = {}
    distances: list[int] = []

    def visit(key: int, n_bytes: int) -> None:
        if key in last:
            distances.append(read_so_far[0] - last[key])
        last[key] = read_so_far[0]
        read_so_far[0] += n_bytes

    step_blocks = decode.step_blocks

    def recorded(blocks: Any, *rest: Any) -> Any:
        for block in blocks:
            visit(id(block), per_block)
        return step_blocks(blocks, *rest)

    monkeypatch.setattr(decode, "step_blocks", recorded)
    for i, (norm, logits_of) in enumerate(weights.heads):
        n_bytes = FLOAT * VOCABULARY * D

        def call(h_BD: Tensor, i: int = i, logits_of: Any = logits_of, n_bytes: int = n_bytes) -> Tensor:
            visit(-1 - i, n_bytes)
            found: Tensor = logits_of(h_BD)
            return found

        weights.heads[i] = (norm, call)
    model = Tokens(weights, case.config(), batch=1, context=4, room=8, seed=0)
    for _ in range(8):
        model.step()
    visited = {key for key in last if key >= 0}
    assert len(visited) == min(len(ring), 8 * N_BLOCKS)
    assert distances
    assert min(distances) >= MARGIN * cache_bytes


def test_prompts_and_tokens_read_the_heads_in_turn() -> None:
    case = case_named("width-128-dense")
    weights = make_weights(case, cache_bytes=2**24)
    n_heads = len(weights.heads)
    assert n_heads > 2
    read: list[int] = []
    for i, (norm, logits_of) in enumerate(weights.heads):

        def call(h_BD: Tensor, i: int = i, logits_of: Any = logits_of) -> Tensor:
            read.append(i)
            found: Tensor = logits_of(h_BD)
            return found

        weights.heads[i] = (norm, call)
    model = Tokens(weights, case.config(), batch=1, context=4, room=4, seed=0)
    for _ in range(n_heads):
        model.read_prompt(3)
    model.step()
    model.read_prompt(3)
    model.step()
    assert read == [i % n_heads for i in range(n_heads + 3)]


@pytest.mark.parametrize("name", ["width-128-sparse", "width-128-sparse-int8", "width-128-sparse-int4"])
def test_every_row_was_read_before_a_token_is_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = Tensor.amax

    def spied(x: Tensor, *dims: int) -> Tensor:
        if not dims:
            read.append(x.data_ptr())
        return original(x, *dims)

    monkeypatch.setattr(Tensor, "amax", spied)
    weights = make_weights(case_named(name), cache_bytes=SMALL_CACHE)
    rows = {rows.data_ptr() for block in weights.blocks for rows in _rows_of(_feed_forward(block))}
    assert len(rows) >= 2
    assert rows <= set(read)
    assert len(read) == len(set(read))


def test_blocks_of_several_kinds_of_attention_keep_the_order_of_the_model() -> None:
    words = ("model=reformer", "d_model=64", "n_heads=2", "d_head=32", "attention=[local,local,lsh,local]")
    words = (*words, "n_layers=8", "local.chunk_len=16", "lsh.chunk_len=16", "lsh.n_hashes=2", "lsh.full_below=0")
    case = Case("small", (*words, "data.length=256", "positions.kind=learned"), 8, vocab_size=64)
    weights = make_weights(case, cache_bytes=SMALL_CACHE)
    kinds = [block.block.attention.kind for block in weights.blocks]
    assert len(kinds) % 4 == 0
    assert kinds[:4] == ["local", "local", "lsh", "local"]
    assert kinds == kinds[:4] * (len(kinds) // 4)
    model, context = Tokens(weights, case.config(), batch=1, context=100, room=5, seed=0), 100
    for _ in range(4):
        model.step()
    keys = 6 * (100 - (100 // 16 - 1) * 16) + 2 * 2 * 2 * 16
    row = _with_context(weights, case.config(), 1, context)
    assert row["attention"].bytes == 4 * 2 * 64 * keys
    assert counted(case, SMALL_CACHE).weights == sum(read.weights for read in weights.reads.values())


def test_the_encoders_tokens_stand_in_front_of_the_rows_where_both_are_joined() -> None:
    words = ("model=terraformer", "d_model=128", "n_heads=2", "d_ff=512", "lsh.full_below=16384", "sparse_qkv.S=2")
    case = Case("joined", words, 2, vocab_size=64)
    weights = make_weights(case, cache_bytes=SMALL_CACHE)
    reads = _with_context(weights, case.config(), 1, 100)
    n_layers = case.config().attention_per_block * 2
    assert reads["attention"].bytes == 2 * n_layers * (100 + MEMORY_TOKENS) * 128 * FLOAT
    model = Tokens(weights, case.config(), batch=1, context=100, room=1, seed=0)
    assert model._position.n == 100 + MEMORY_TOKENS
    model.step()

"""`efftx bench decode`: other libraries beside the cases."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from efftx.bench import decode, decode_peers, decode_timing
from efftx.bench.decode_timing import Reference
from efftx.bench.decode_weights import MARGIN
from efftx.bench.engine_peers import write_gguf
from efftx.layers.cost import Read
from tests.bench.decode_rows import FLOAT, KEYS
from tests.bench.runs import SMALL_CACHE, decoded, printed


def test_a_peer_that_is_not_installed_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    peers: Any
    for peers, name in ((decode_peers.TORCH_PEERS, "transformers-t5"), (decode_peers.ENGINES, "ctranslate2-gpt2")):
        monkeypatch.setitem(peers, name, replace(peers[name], package="no-such-package"))
        result = decoded(f"names=width-128-dense,{name}")
        assert [row["name"] for row in result["rows"]] == ["width-128-dense"]
        assert result["skipped"][0]["name"] == name
        assert "no-such-package is not installed" in printed(result)
    result = decoded("names=transformers-t5,ctranslate2-gpt2")
    assert result["rows"] == []
    assert len(result["skipped"]) == 2
    assert printed(result)


def _peer_row(name: str, reference: Reference, **facts: Any) -> dict[str, Any]:
    """What `peer_rows` gives of a token, at context 16."""

    def tokens() -> list[decode_timing.Timed]:
        return [decode_timing.Timed(0.5, None, 0.0)] * 3

    facts = {
        **{"name": name, "peer": True, "version": "1", "note": "", "length": 16, "width": 1024, "components": {}},
        **{"n_blocks": 0, "peak_bytes": 10**6, "distinct_blocks": 24},
        **facts,
    }
    reads = {"everything else": Read("everything else", 10, 40)}
    return decode_timing.row_of(tokens, reads, decode_timing.Procedure("steady", 3), reference, **facts)


@pytest.mark.parametrize("first", ["ctranslate2-gpt2", "width-128-dense"])
def test_a_peer_has_rows_of_batch_1_alone_and_nothing_is_compared_with_another_batch(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "peer_rows", lambda name, *given, **_: ([_peer_row(name, given[-1], width=128)], ""))
    second = {"ctranslate2-gpt2": "logits-128-s4", "width-128-dense": "ctranslate2-gpt2"}[first]
    rows = decoded(f"names={first},{second}", "batch=1,8")["rows"]
    ratios = {(row["name"], row["batch"]): row["ratio_to_first"] for row in rows}
    assert {key for key, ratio in ratios.items() if ratio is None} == (
        {(second, 8)} if first == "ctranslate2-gpt2" else set()
    )
    assert ratios[first, 1] == 1.0

    result = decoded(f"names={first},{second}", "batch=2,8")
    case = second if first == "ctranslate2-gpt2" else first
    assert [(row["name"], row["batch"]) for row in result["rows"]] == [(case, 2), (case, 8)]
    assert [row["ratio_to_first"] for row in result["rows"]] == ([1.0] * 2 if case == first else [None] * 2)
    assert [row["block_ratio_to_first"] for row in result["rows"]] == ([1.0] * 2 if case == first else [None] * 2)
    (left_out,) = result["skipped"]
    assert (left_out["name"], left_out["why"]) == ("ctranslate2-gpt2", "batch 1 only")
    assert "batch 1 only" in printed(result)


def test_a_peer_with_one_copy_of_its_weights_is_not_said_to_read_eight_caches_before_it_reads_them_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_peer = {"ctranslate2-gpt2": MARGIN * SMALL_CACHE - 1, "transformers-t5": MARGIN * SMALL_CACHE}
    monkeypatch.setattr(
        decode, "peer_rows", lambda name, *given, **_: ([_peer_row(name, given[-1], peak_bytes=of_peer[name])], "")
    )
    shown = " ".join(printed(decoded("names=width-128-dense,transformers-t5,ctranslate2-gpt2")).split())
    _, _, after = shown.partition("works on distinct weights:")
    apart, _, rest = after.partition("before one is read again, 8 times the cache has been read")
    assert "width-128-dense" in apart
    assert "transformers-t5 512.0 KiB" in apart
    assert "ctranslate2-gpt2" not in apart
    assert "ctranslate2-gpt2 reads the same 512.0 KiB at every token." in rest
    alone = printed(decoded("names=ctranslate2-gpt2"))
    assert "distinct weights" not in alone


Call = Callable[[Any, torch.Tensor, torch.Tensor, Any], torch.Tensor]


def _stub_peer(monkeypatch: pytest.MonkeyPatch, make_cache: Callable[[], object], call: Call) -> None:
    """The peer `stub`, two linear layers; its package is there, and so is what transformers has of caches."""
    utils = ModuleType("transformers.cache_utils")
    monkeypatch.setattr(utils, "DynamicCache", make_cache, raising=False)
    monkeypatch.setattr(utils, "EncoderDecoderCache", None, raising=False)
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    monkeypatch.setitem(sys.modules, "transformers.cache_utils", utils)
    peer = replace(
        decode_peers.TORCH_PEERS["transformers-gpt2"],
        package="torch",
        make=lambda shape, n_positions: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
        blocks=lambda whole: whole,
        ends=lambda whole: [],
        call=call,
    )
    monkeypatch.setitem(decode_peers.TORCH_PEERS, "stub", peer)  # type: ignore[index]
    monkeypatch.setattr(decode_peers, "SHAPE", decode_peers.Shape(8, 8, 1, 2, 10))


def test_a_fault_of_the_timing_is_not_told_as_the_package_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object, **__: object) -> None:
        raise TypeError("ours")

    _stub_peer(monkeypatch, object, lambda whole, token_11, memory_1ED, cache: whole(memory_1ED[:, :1]))
    monkeypatch.setattr(decode_peers, "row_of", faulty)
    reference, procedure = Reference(torch.device("cpu"), 64), decode_timing.Procedure("steady", 3)
    with pytest.raises(TypeError, match="ours"):
        decode_peers.peer_rows("stub", procedure, [1], reference)
    _stub_peer(monkeypatch, object, faulty)  # type: ignore[arg-type]
    rows, why = decode_peers.peer_rows("stub", procedure, [1], reference)
    assert rows == []
    assert why.startswith("not with this version of torch")
    assert why.endswith("ours")


def test_a_peer_is_let_go_with_its_hooks_when_its_timing_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[weakref.ref[Any]] = []
    n_hooks: list[tuple[int, int, int]] = []

    class Cache:
        def __init__(self) -> None:
            caches.append(weakref.ref(self))

    def call(whole: Any, token_11: torch.Tensor, memory_1ED: torch.Tensor, cache: Cache) -> torch.Tensor:
        first, *_, last = whole
        alive = sum(each() is not None for each in caches)
        n_hooks.append((len(first._forward_pre_hooks), len(last._forward_hooks), alive))
        logits: torch.Tensor = whole(memory_1ED[:, :1])
        return logits

    _stub_peer(monkeypatch, Cache, call)
    reference = Reference(torch.device("cpu"), 64)
    rows, why = decode_peers.peer_rows("stub", decode_timing.Procedure("steady", 3, repeats=5), [1], reference)
    assert why == ""
    assert rows[0]["tokens"] == 5 * 3
    assert rows[0]["block_seconds"] > 0
    assert {hooks for *hooks_, _ in n_hooks for hooks in hooks_} == {0, 1}
    assert {alive for *_, alive in n_hooks} == {1}
    assert all(each() is None for each in caches)


@pytest.mark.filterwarnings("default")
def test_ctranslate2_is_measured_beside_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ctranslate2")
    d, d_ff, n_blocks, n_words = 128, 256, 3, 100
    monkeypatch.setattr(decode_peers, "SHAPE", decode_peers.Shape(d, d_ff, 2, n_blocks, n_words))
    result = decoded("names=width-128-dense,ctranslate2-gpt2,ctranslate2-gpt2-int8", "context=1,40")
    json.dumps(result)
    assert result["skipped"] == []
    own, _, first, later, int8, _ = result["rows"]
    for row in result["rows"][2:]:
        assert set(row) >= KEYS
        assert row["peer"]
        assert row["seconds"] > 0
        assert row["tokens"] == own["tokens"]
        assert row["version"].startswith("ctranslate2 ")
    assert first["weights"] == int8["weights"] == n_blocks * (4 * d * d + 2 * d * d_ff) + n_words * d
    assert first["bytes"] - int8["bytes"] == (FLOAT - 1) * first["weights"]
    assert later["bytes"] - first["bytes"] == FLOAT * 2 * n_blocks * d * 39
    assert "ctranslate2-gpt2-int8 (peer)" in printed(result)


@pytest.mark.filterwarnings("default")
def test_llama_cpp_is_measured_beside_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    d, d_ff, n_blocks, n_words = 128, 256, 3, 100
    monkeypatch.setattr(decode_peers, "SHAPE", decode_peers.Shape(d, d_ff, 2, n_blocks, n_words))
    names = ["llama-cpp-gpt2", "llama-cpp-gpt2-q8_0", "llama-cpp-gpt2-q4_0"]
    result = decoded(f"names=width-128-dense,{','.join(names)}", "context=1,300")
    json.dumps(result)
    assert result["skipped"] == []
    own, rows = result["rows"][0], result["rows"][2:]
    assert [row["name"] for row in rows] == [name for name in names for _ in range(2)]
    for row in rows:
        assert set(row) >= KEYS
        assert row["peer"]
        assert row["seconds"] > 0
        assert row["tokens"] == own["tokens"]
        assert row["version"].startswith("llama-cpp-python ")
    weights = n_blocks * (4 * d * d + 2 * d * d_ff) + n_words * d
    assert {row["weights"] for row in rows} == {weights}
    half_keys = 2 * 2 * n_blocks * d
    assert [row["bytes"] - half_keys for row in rows[::2]] == [4 * weights, weights * 34 // 32, weights * 18 // 32]
    assert rows[1]["bytes"] - rows[0]["bytes"] == half_keys * 299


HALF = 2.0**-11
"""The rounding of a scale to float16."""


@pytest.mark.parametrize(("quantization", "error"), [(None, 0.0), ("Q8_0", 0.5 / 127 + HALF), ("Q4_0", 1 / 8 + HALF)])
def test_the_file_for_llama_cpp_holds_the_same_matrices_in_every_kind(
    tmp_path: Path, quantization: str | None, error: float
) -> None:
    gguf = pytest.importorskip("gguf")
    shape = decode_peers.Shape(64, 96, 2, 2, 50)
    tensors_of = {}
    for kind in (None, quantization):
        folder = tmp_path / str(kind)
        folder.mkdir(exist_ok=True)
        write_gguf(shape, 40, folder, 0, kind)
        tensors = gguf.GGUFReader(folder / "model.gguf").tensors
        tensors_of[kind] = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in tensors}
    assert tensors_of[None].keys() == tensors_of[quantization].keys()
    assert tensors_of[None]["position_embd.weight"].shape == (256, 64)
    assert tensors_of[None]["blk.1.attn_qkv.weight"].shape == (192, 64)
    assert tensors_of[None]["blk.1.ffn_down.weight"].shape == (64, 96)
    for name, plain in tensors_of[None].items():
        blocks = plain.reshape(-1, 32) if plain.size % 32 == 0 else plain
        largest = abs(blocks).max(-1, keepdims=True) + 1e-12
        assert (abs(tensors_of[quantization][name].reshape(blocks.shape) - blocks) <= error * largest).all(), name


@pytest.mark.filterwarnings("default")
def test_torchao_is_measured_beside_the_cases(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao")
    pytest.importorskip("transformers")
    d, d_ff, n_heads, n_blocks, n_words = 128, 256, 2, 3, 100
    monkeypatch.setattr(decode_peers, "SHAPE", decode_peers.Shape(d, d_ff, n_heads, n_blocks, n_words))
    result = decoded("names=transformers-t5,torchao-t5-int8")
    assert result["skipped"] == []
    plain, int8 = result["rows"]
    assert int8["version"].startswith("torchao ")
    assert (plain["quantization"], int8["quantization"]) == (None, "int8")
    assert int8["weights"] == plain["weights"]
    matrices = n_blocks * (6 * d * d + 2 * d * d_ff) + n_words * d
    n_rows = n_blocks * (7 * d + d_ff) + n_words
    scales = int8["bytes"] - (plain["bytes"] - (FLOAT - 1) * matrices)
    assert n_rows * FLOAT <= scales <= n_rows * (FLOAT + 1)
    assert "Failed to load" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_installed_peers_are_measured_beside_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    d, d_ff, n_heads, n_blocks, n_words = 128, 256, 2, 3, 100
    monkeypatch.setattr(decode_peers, "SHAPE", decode_peers.Shape(d, d_ff, n_heads, n_blocks, n_words))
    result = decoded("names=width-128-dense,transformers-t5,transformers-gpt2", "context=1,40")
    json.dumps(result)
    assert result["skipped"] == []
    own, _, t5, t5_later, gpt2, gpt2_later = result["rows"]
    for row in (t5, t5_later, gpt2, gpt2_later):
        assert set(row) >= KEYS
        assert row["peer"]
        assert row["components"] == {}
        assert row["version"].startswith("transformers ")
        assert row["peak_bytes"] >= MARGIN * SMALL_CACHE
        assert 0 < row["block_seconds"] * n_blocks < 2 * row["p99"]
    assert t5["ratio_to_first"] == own["seconds"] / t5["seconds"]
    # q, k, v, o of itself, q and o of the encoder's output, two matrices, three norms; buckets of positions
    assert t5["weights"] == n_blocks * (6 * d * d + 2 * d * d_ff + 3 * d) + 32 * n_heads + d + n_words * d + d
    of_gpt2 = 3 * d * (d + 1) + d * (d + 1) + (d + 1) * d_ff + (d_ff + 1) * d + 4 * d
    assert gpt2["weights"] == n_blocks * of_gpt2 + 2 * d + n_words * d + 2 * d
    assert t5["bytes"] == FLOAT * (t5["weights"] + 2 * n_blocks * d * (1 + 16))
    assert gpt2_later["bytes"] - gpt2["bytes"] == FLOAT * 2 * n_blocks * d * 39
    assert "transformers-t5 (peer)" in printed(result)

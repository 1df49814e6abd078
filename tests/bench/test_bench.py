"""What `efftx bench` measures and how it answers; nothing here depends on how long something takes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from efftx import bench
from efftx.bench import attention, peers, stacks
from efftx.bench.attention import Case, add_ratio_to_peer, case_names, case_of, input_of, peak_bytes
from efftx.bench.stacks import peak_of_step, variant
from efftx.config.compose import compose
from efftx.errors import UserError
from efftx.layers.attention_settings import LSHConfig
from efftx.machine import timing
from tests.bench.runs import printed

CPU = torch.device("cpu")
KEYS = {"name", "peer", "length", "pass", "seconds", "peak_bytes", "bound_seconds"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that take no time."""
    monkeypatch.setattr(timing, "MATMUL_WIDTH", 16)
    monkeypatch.setattr(timing, "READ_BYTES", 4096)


def test_a_row_of_attention_has_its_keys_is_json_and_is_printed() -> None:
    result = bench.run(
        "attention", ["lengths=64,100", "names=full,full-block,full-sdpa,lsh-2,lsh-2-later", "repeats=1"]
    )
    json.dumps(result)
    assert [(row["length"], row["name"]) for row in result["rows"]] == [
        (length, name) for length in (64, 100) for name in ("full", "full-block", "full-sdpa", "lsh-2", "lsh-2-later")
    ]
    for row in result["rows"]:
        assert set(row) >= KEYS
        assert row["pass"] == "forward+backward"
        assert row["seconds"] > 0
        assert row["peak_bytes"] > 0
        assert row["ratio_to_bound"] == row["seconds"] / row["bound_seconds"]
    assert result["machine"]["read_bytes_per_second"] > 0
    shown = printed(result)
    assert all(name in shown for name in ("full-block", "lsh-2-later =", "1 thread,"))


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("atention", [], "attention"),
        ("attention", ["names=lsh-3"], "lsh-"),
        ("attention", ["names=full-spda"], "full-sdpa"),
        ("attention", ["length=64"], "lengths"),
        ("attention", ["lengths=0"], ""),
        ("attention", ["lengths=many"], ""),
        ("attention", ["lengths"], "lengths="),
        ("attention", ["repeats=1,2"], ""),
        ("attention", ["pass=backwards"], "forward"),
        ("attention", ["device=cpu1"], "cpu"),
        ("memory", ["names=reverisble"], "reversible"),
        ("memory", ["repeats=3"], "depths"),
        ("train", ["depths=-1"], ""),
    ],
)
def test_a_wrong_word_is_refused_with_the_nearest_right_one(name: str, options: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        bench.run(name, options)
    assert told in error.value.hint


def test_every_name_is_a_case_and_says_what_it_is() -> None:
    for name in case_names():
        case = case_of(name, 128)
        assert (case.peer is not None) == name.startswith(tuple(peers.PEERS))
        assert case.kind == ("lsh" if "lsh" in name else case.kind)
    assert case_of("lsh-8", 128) == Case("lsh", 128, n_hashes=8)
    assert case_of("lsh-8-later", 128) == Case("lsh", 128, n_hashes=8, later=True)
    assert case_of("transformers-lsh-4", 128) == Case("lsh", 128, n_hashes=4, later=True, peer="transformers")
    layer: Any = case_of("lsh-2-later", 128).make(CPU, 0)
    assert layer.config.attend_across_buckets
    assert layer.config.allow_duplicates
    layer = case_of("full-block", 512).make(CPU, 0)
    assert (layer.pattern.query_block, layer.project.share_qk) == (attention.QUERY_BLOCK, True)


def test_patterns_stand_beside_dense_attention_of_the_same_layer() -> None:
    names = ["sparse-dense", "sparse-window", "sparse-column", "sparse-strided", "sparse-fixed"]
    result = bench.run("attention", ["lengths=300", f"names=full-sdpa,{','.join(names)}", "repeats=1"])
    json.dumps(result)
    other, *rows = result["rows"]
    assert [row["name"] for row in rows] == names
    assert (other["ratio_to_dense"], other["alone_seconds"], other["alone_times_dense"]) == (None, None, None)
    for row in rows:
        assert row["ratio_to_dense"] == row["seconds"] / rows[0]["seconds"]
        assert row["alone_times_dense"] == rows[0]["alone_seconds"] / row["alone_seconds"]
        # Four projections of d 512, forward and twice as much backward, are what the whole layer has beside its heads.
        heads = row["alone_bound_seconds"] * row["matmul_flops_per_second"]
        assert row["flops"] - heads == pytest.approx(300 * 3 * 4 * 2 * 512 * 512)
        assert row["ratio_to_bound"] == row["seconds"] / row["bound_seconds"]
    shares = [row["share_of_dense"] for row in rows]
    assert shares[0] == 1.0
    # 3 blocks of 128: a column has 3 keys at most; a window its block and half of the one before, which is masked.
    assert shares[2] == 3 * 4 / 2 * 128 / (300 * 301 / 2)
    assert shares[3] > shares[1]
    assert "stride 128" in printed(result)


def test_what_a_pattern_holds_is_linear_in_the_length() -> None:
    for kind in attention.SETS:
        peaks = [
            peak_bytes(case.make(CPU, 0), input_of(case, CPU, 0), backward=True)
            for case in (Case(kind, n, d_model=16, n_heads=2, d_head=8, stride=16, c=4) for n in (1024, 2048))
        ]
        assert peaks[1] < 2.1 * peaks[0], kind


def test_the_peak_of_a_layer_is_what_can_be_counted_by_hand() -> None:
    # Forward, fused, with one head of width d: shared queries, values, the normalised key and the output of the
    # kernel are alive when the first token's output is joined to the rest.
    case = Case("sdpa", length=64, d_model=32, n_heads=1, d_head=32)
    unit = 64 * 32 * 4
    peak = peak_bytes(case.make(CPU, 0), input_of(case, CPU, 0), backward=False)
    assert peak == pytest.approx(5 * unit, rel=0.03)


def test_the_whole_score_matrix_is_the_peak_of_plain_attention() -> None:
    def peak(kind: str, length: int) -> int:
        case = Case(kind, length, d_model=16, n_heads=2, d_head=8, query_block=32)
        return peak_bytes(case.make(CPU, 0), input_of(case, CPU, 0), backward=False)

    assert peak("full", 512) >= 2 * 2 * 512**2 * 4
    assert peak("full", 512) > 3.5 * peak("full", 256)
    assert peak("memory_efficient", 512) < 2.5 * peak("memory_efficient", 256)
    assert peak("sdpa", 512) == pytest.approx(2 * peak("sdpa", 256), rel=0.02)


def test_gradients_of_the_weights_are_not_part_of_a_peak() -> None:
    case = Case("sdpa", length=8, d_model=128, n_heads=2, d_head=64)
    layer = case.make(CPU, 0)
    peak = peak_bytes(layer, input_of(case, CPU, 0), backward=True)
    assert peak < sum(p.numel() * 4 for p in layer.parameters())
    assert all(p.grad is None for p in layer.parameters())


def test_the_ratio_is_to_the_faster_peer_of_the_same_rounds_and_length() -> None:
    def row(name: str, seconds: float, peer: bool, rounds: int | None = 4, length: int = 64) -> dict[str, Any]:
        return {
            "name": name,
            "seconds": seconds,
            "peer": peer,
            "rounds": rounds,
            "length": length,
            "pass": "forward",
        }

    rows = [
        row("lsh-4", 1.0, False),
        row("slow", 4.0, True),
        row("fast", 2.0, True),
        row("other rounds", 0.1, True, rounds=2),
        row("other length", 0.1, True, length=128),
        row("full", 1.0, False, rounds=None),
    ]
    add_ratio_to_peer(rows)
    assert [r["ratio_to_peer"] for r in rows] == [0.5, 2.0, 1.0, 1.0, 1.0, None]
    assert rows[0]["faster_peer"] == "fast"


def test_a_peer_that_is_absent_or_cannot_take_a_length_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(shape: peers.PeerShape) -> torch.nn.Module:
        raise ImportError("no such class")

    monkeypatch.setitem(peers.PEERS, "transformers", peers.AttentionPeer("no-such-package", missing, ""))
    monkeypatch.setitem(peers.PEERS, "reformer-pytorch", peers.AttentionPeer("torch", missing, ""))
    names = "names=lsh-1,transformers-lsh-1,reformer-pytorch-lsh-1"
    result = bench.run("attention", ["lengths=128", names, "repeats=1", "pass=forward"])
    assert [row["name"] for row in result["rows"]] == ["lsh-1"]
    why = {s["name"]: s["why"] for s in result["skipped"]}
    assert why["transformers-lsh-1"] == "no-such-package is not installed"
    assert "not in this version" in why["reformer-pytorch-lsh-1"]
    assert "no-such-package is not installed" in printed(result)

    shape = peers.PeerShape(256, 4, 64, 64, 1, 100)
    monkeypatch.undo()
    for peer in peers.PEERS.values():
        if peer.version is not None:
            assert "multiples" in str(peer.why_not(shape))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(peers.PEERS))
def test_an_installed_peer_is_measured_beside_the_later_form(name: str) -> None:
    if peers.PEERS[name].version is None:
        pytest.skip(f"{name} is not installed")
    result = bench.run("attention", ["lengths=256", f"names=lsh-2-later,{name}-lsh-2", "repeats=1"])
    own, peer = result["rows"]
    assert (own["peer"], peer["peer"]) == (False, True)
    assert own["ratio_to_peer"] == own["seconds"] / peer["seconds"]
    assert peer["ratio_to_peer"] == 1.0
    assert own["flops"] == peer["flops"]
    assert own["like_for_like"]
    assert result["skipped"] == []


SIZES = {"d_model": 32, "n_heads": 2, "d_head": 16, "repeats": 1, "warm_up": 1, "pass": "forward"}


@pytest.mark.parametrize(
    "row",
    [
        {"attention": "full"},
        {"attention": "memory_efficient", "query_block": 32},
        {"attention": "sdpa"},
        {"attention": "lsh", "n_hashes": 2, "chunk_len": 16},
        {"attention": "window", "stride": 16},
        {"attention": "column", "stride": 16, "share_qk": False},
        {"attention": "strided", "stride": 16},
        {"attention": "fixed", "stride": 16, "c": 4},
    ],
)
def test_an_experiment_gets_seconds_and_bytes(row: dict[str, Any]) -> None:
    found = bench.attention_time({**SIZES, **row, "length": 64, "batch": 2, "seed": 1})
    assert set(found) >= KEYS | {"threads"}
    assert found["seconds"] > 0
    assert (found["length"], found["batch"]) == (64, 2)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"attention": "lhs"}, "lsh"),
        ({"pass": "foreward"}, "forward"),
        ({"n_hashs": 2}, "n_hashes"),
        ({"device": "gpu"}, "cpu"),
    ],
)
def test_an_experiment_that_asks_for_what_there_is_not_is_told(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        bench.attention_time({**SIZES, "attention": "sdpa", "length": 64, **wrong})
    assert told in error.value.hint


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"length": None}, "length"),
        ({"attention": None}, "attention"),
        ({"length": 0}, "length=0 must be at least 1"),
        ({"length": "long"}, "length=long"),
        ({"length": 64.5}, "length=64.5"),
        ({"repeats": 0}, "repeats=0 must be at least 1"),
        ({"warm_up": -1}, "warm_up=-1"),
        ({"batch": 0}, "batch=0"),
        ({"d_head": 0}, "d_head=0"),
        ({"query_block": 0}, "query_block=0"),
        ({"attention": "lsh", "n_hashes": 0}, "n_hashes=0"),
        ({"attention": "lsh", "chunk_len": 0}, "chunk_len=0"),
        ({"attention": "lsh", "share_qk": False}, "share_qk"),
        ({"attention": "fixed", "stride": 16, "c": 32}, "c=32"),
        ({"stride": -1}, "stride=-1"),
        ({"later": "perhaps"}, "later=perhaps"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_an_experiment_with_a_number_that_cannot_be_is_told_which(wrong: dict[str, Any], told: str) -> None:
    given = {**SIZES, "attention": "sdpa", "length": 64, **wrong}
    with pytest.raises(UserError, match=re.escape(told)):
        bench.attention_time({key: value for key, value in given.items() if value is not None})


def test_an_experiment_hashes_in_as_many_rounds_as_a_configuration_does_where_it_says_none() -> None:
    found = bench.attention_time({**SIZES, "attention": "lsh", "length": 64, "chunk_len": 16})
    assert found["rounds"] == LSHConfig().n_hashes


def test_scores_that_cannot_fit_in_memory_are_refused_before_they_are_made() -> None:
    with pytest.raises(UserError, match="GB"):
        bench.attention_time({"attention": "full", "length": 10_000_000})


def test_reversible_memory_stays_flat_in_depth_and_ordinary_memory_grows() -> None:
    options = ["names=transformer,reversible", "depths=3,9", "lengths=64", "batch=2"]
    result = bench.run("memory", options)
    json.dumps(result)
    peak = {(row["name"], row["depth"]): row["peak_bytes"] for row in result["rows"]}
    assert peak["transformer", 9] > 2.5 * peak["transformer", 3]
    assert peak["reversible", 9] <= 1.05 * peak["reversible", 3]
    assert set(result["flatness"]) == {"reversible at 64"}
    assert result["flatness"]["reversible at 64"] <= 1.05
    for row in result["rows"]:
        assert set(row) >= KEYS
        assert (row["replay_bytes"] > 0) == row["reversible"]
    assert "of the smallest" in printed(result)


def test_recomputed_blocks_add_their_input_a_block_and_no_more() -> None:
    rows = bench.run("memory", ["names=transformer,recomputed", "depths=3,9", "lengths=64", "batch=2"])["rows"]
    stored, recomputed = ([row for row in rows if row["name"] == name] for name in ("transformer", "recomputed"))
    input_bytes = 4 * 2 * 64 * 256
    assert recomputed[1]["peak_bytes"] - recomputed[0]["peak_bytes"] == 6 * input_bytes
    assert stored[1]["peak_bytes"] - stored[0]["peak_bytes"] > 6 * 8 * input_bytes
    for row in recomputed:
        assert row["planned_bytes"] == pytest.approx(row["peak_bytes"], rel=0.2)


def test_encoder_decoders_are_measured_with_inputs_and_targets() -> None:
    result = bench.run("memory", ["names=scaling,terraformer", "depths=1,3", "lengths=64", "batch=1"])
    peak = {(row["name"], row["depth"]): row["peak_bytes"] for row in result["rows"]}
    replay = {(row["name"], row["depth"]): row["replay_bytes"] for row in result["rows"]}
    assert peak["scaling", 3] > 2 * peak["scaling", 1]
    assert peak["terraformer", 3] <= 1.05 * peak["terraformer", 1]
    assert replay["terraformer", 3] == 3 * replay["terraformer", 1] > 0
    config = variant("terraformer", depth=3, length=64, batch=1)
    assert (config.n_layers, config.n_encoder_layers, config.data.length, config.target_length) == (3, 3, 64, 32)


@pytest.mark.parametrize("name", ["memory", "train"])
def test_every_shape_among_the_rows_is_told_once(name: str) -> None:
    words = ["names=transformer,reversible,scaling,sparse-dense", "depths=1", "lengths=32,64", "batch=1"]
    result = bench.run(name, words + ["repeats=1"] * (name == "train"))
    json.dumps(result)
    assert [(shape["names"], shape["d_model"], shape["d_ff"], shape["n_heads"]) for shape in result["models"]] == [
        (["transformer", "reversible"], 256, 1024, 4),
        (["scaling"], 256, 1024, 4),
        (["sparse-dense"], 512, 2048, 8),
        (["scaling"], 256, 1024, 4),
    ]
    assert [(shape.get("N"), shape.get("target_length")) for shape in result["models"]] == [
        (None, None),
        (16, 16),
        (None, None),
        (16, 32),
    ]
    lines = printed(result).splitlines()
    assert "transformer, reversible: d_model 256, d_ff 1024, n_heads 4, d_head 64, vocab_size 256, batch 1" in lines
    assert "sparse-dense: d_model 512, d_ff 2048, n_heads 8, d_head 64, vocab_size 256, batch 1" in lines
    widths = "scaling: d_model 256, d_ff 1024, n_heads 4, d_head 64, N 16, S 8"
    assert f"{widths}, target_length 32, vocab_size 256, batch 1" in lines


def test_a_step_of_the_sparse_transformer_is_timed_beside_the_dense_one() -> None:
    names = ["sparse-dense", "sparse-strided", "sparse-fixed"]
    rows = bench.run("train", [f"names={','.join(names)}", "depths=2", "lengths=256", "batch=1", "repeats=1"])["rows"]
    assert [row["name"] for row in rows] == names
    dense, *sparse = rows
    for row in sparse:
        assert row["ratio_to_first"] == row["seconds"] / dense["seconds"]
        assert row["flops"] < dense["flops"]
        assert row["ratio_to_bound"] == row["seconds"] / row["bound_seconds"]
    configs = [stacks.variant(name, depth=2, length=12_288, batch=1) for name in names]
    assert [config.attention for config in configs] == [["full"], ["strided"], ["fixed"]]
    assert {(c.d_model, c.n_heads, c.fixed.stride_of(12_288), c.fixed.c_of(12_288)) for c in configs} == {
        (512, 8, 128, 32)
    }


def test_a_training_step_of_every_variant_is_timed() -> None:
    result = bench.run("train", ["depths=1", "lengths=64", "batch=1", "repeats=1"])
    json.dumps(result)
    assert [row["name"] for row in result["rows"]] == [
        "plain-loop",
        "dense",
        "transformer",
        "reversible",
        "chunked-reversible",
        "lsh",
        "reformer",
    ]
    for row in result["rows"]:
        assert set(row) >= KEYS
        assert row["tokens_per_second"] == 64 / row["seconds"]
    assert result["rows"][0]["ratio_to_first"] == 1.0
    assert "tokens/s" in printed(result)


def test_the_peak_of_a_step_leaves_out_gradients_and_replay_state() -> None:
    smoke = ["data=stdlib", "size=smoke"]
    wide = compose([*smoke, "model=transformer", "n_layers=1", "d_ff=8192", "data.length=8", "training.batch_size=1"])
    assert peak_of_step(wide, CPU)[0] < 2 * wide.d_model * wide.d_ff * 4

    def hashed(n_layers: int) -> tuple[int, int]:
        return peak_of_step(compose([*smoke, "model=reformer", "lsh.n_hashes=16", f"n_layers={n_layers}"]), CPU)

    (shallow, shallow_replay), (deep, deep_replay) = hashed(2), hashed(8)
    assert deep_replay == 4 * shallow_replay
    assert deep - shallow < 0.1 * (deep_replay - shallow_replay)

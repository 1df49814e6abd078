"""What `efftx bench decode` measures and how it answers; nothing depends on how long it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from efftx.bench import decode, decode_peers, decode_timing, decode_weights
from efftx.bench.decode import Tokens
from efftx.bench.decode_cases import case_named
from efftx.bench.decode_timing import Reference
from efftx.bench.decode_weights import MARGIN, make_weights
from efftx.cli import main
from efftx.errors import UserError
from efftx.layers.cost import Read
from efftx.machine.timing import WARM_UP
from efftx.native.library import kernels
from tests.bench.runs import SMALL_CACHE, decoded, printed

D, N_BLOCKS, VOCABULARY, FLOAT = 128, 6, 32_000, 4
KEYS = {"name", "peer", "length", "pass", "seconds", "peak_bytes", "bound_seconds"} | {
    *("version", "note", "batch", "width", "protocol", "spread", "p50", "p99", "uneven", "tokens", "block_seconds"),
    *("weights", "bytes", "ratio_to_bound", "bandwidth", "share_of_read", "share_of_matvec", "overhead_share"),
    *("components", "n_blocks", "int8", "distinct_blocks", "distinct_row_sets", "ratio_to_first"),
    *("block_ratio_to_first", "tokens_per_second", "first_token_seconds", "repeats"),
}


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes a second further whenever somebody looks at it."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(decode_timing.time, "perf_counter", lambda: float(next(ticks)))


@pytest.mark.parametrize("name", ["width-128-sparse", "width-128-dense-int8", "logits-128-s4"])
def test_the_first_token_of_a_prompt_is_timed_by_its_length(name: str) -> None:
    result = decoded(f"names={name}", "prompts=3,200", "batch=2")
    (row,) = result["rows"]
    assert set(row["first_token_seconds"]) == {"3", "200"}
    assert all(seconds > 0 for seconds in row["first_token_seconds"].values())
    assert "first of 200, ms" in printed(result)


def test_a_row_has_its_keys_is_json_and_is_printed_by_part() -> None:
    result = decoded("names=width-128-dense,width-128-sparse,logits-128-s4", "context=16,64", "batch=1,2")
    json.dumps(result)
    assert [(r["name"], r["batch"], r["length"]) for r in result["rows"]] == [
        (name, batch, context)
        for name in ("width-128-dense", "width-128-sparse", "logits-128-s4")
        for batch in (1, 2)
        for context in (16, 64)
    ]
    for row in result["rows"]:
        assert set(row) >= KEYS
        assert not row["peer"]
        assert row["bandwidth"] == row["bytes"] / row["seconds"]
        assert row["tokens_per_second"] == row["batch"] / row["seconds"]
        assert row["first_token_seconds"] == {}
        assert row["ratio_to_bound"] == row["seconds"] / row["bound_seconds"]
        assert row["weights"] == sum(part["weights"] for part in row["components"].values())
        assert row["bytes"] == sum(part["bytes"] for part in row["components"].values())
        assert (row["block_seconds"] is None) == row["name"].startswith("logits")
    first, sparse = result["rows"][0], result["rows"][4]
    assert first["ratio_to_first"] == first["block_ratio_to_first"] == 1.0
    assert sparse["ratio_to_first"] == first["seconds"] / sparse["seconds"]
    assert set(sparse["components"]) == {
        *("QKV", "attention", "controller", "feed-forward", "logits", "everything else")
    }
    machine = result["machine"]
    assert machine["last_level_cache_bytes"] == SMALL_CACHE
    assert machine["read_bytes_per_second"] > 0
    assert machine["matvec_bytes_per_second"] > 0

    for width in (60, 80, 160):
        assert all(len(line) <= width for line in printed(result, width).splitlines()), width
    shown = printed(result, width=160)
    told = ("controller", "The authors' protocol", "64.0 KiB", "1 thread,", "matrix-vector", "everything else")
    assert all(words in shown for words in told)
    assert "width-128-dense cycles over 1 distinct set of a block's weights" in shown


def test_the_parts_of_a_token_add_up_to_its_time(ticking: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a tick; between the first and the last of a token's, each belongs to a part."""
    monkeypatch.setattr("efftx.native.program.kernels", lambda: None)  # which look at the machine's own clock
    case = case_named("width-128-sparse")
    weights = make_weights(case, cache_bytes=SMALL_CACHE)
    model = Tokens(weights, case.config(), batch=1, context=8, room=4, seed=0)
    before = decode_timing.time.perf_counter()
    model.step_by_part()
    parts, _ = model.last_seconds()
    assert sum(parts.values()) == model.profile.last - (before + 1)
    assert set(parts) >= {"QKV", "attention", "controller", "feed-forward", "logits", "everything else"}


@pytest.mark.skipif(kernels() is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ["width-128-dense", "width-128-sparse"])
def test_the_parts_of_a_program_end_one_after_the_other_within_the_token(name: str) -> None:
    case = case_named(name)
    model = Tokens(make_weights(case, cache_bytes=SMALL_CACHE), case.config(), batch=1, context=8, room=4, seed=0)
    assert all(block.program is not None for block in model.weights.blocks)
    before = decode_timing.time.perf_counter()
    model.step_by_part()
    parts, after = model.profile.seconds, decode_timing.time.perf_counter()
    assert before < model.profile.last < after
    assert all(seconds >= 0 for seconds in parts.values())
    assert 0 < sum(parts.values()) < after - before


def test_a_token_that_is_timed_as_a_whole_looks_at_the_clock_only_for_its_blocks(ticking: None) -> None:
    for row in decoded("names=width-128-dense,width-128-sparse")["rows"]:
        assert row["seconds"] == 3  # the beginning, the blocks', their end, the end
        assert row["block_seconds"] * N_BLOCKS == 1


def _timed(*seconds: float) -> list[tuple[float, dict[str, float], float]]:
    return [(t, {"logits": t / 2}, t / 4) for t in seconds]


def test_the_authors_ignore_two_steps_and_take_the_mean_of_ten() -> None:
    timed = _timed(100.0, 50.0, *(float(i) for i in range(1, 11)))
    counted = decode_timing.Procedure("authors", 12).counted(timed)
    found = decode_timing.summary(counted, "authors", {"logits": Read("logits", 10, 40)}, 20.0, 10.0)
    assert (found["seconds"], found["tokens"]) == (5.5, 10)
    assert found["uneven"]
    assert found["components"]["logits"]["seconds"] == 2.75  # the median of its own
    assert (found["bound_seconds"], found["bandwidth"]) == (2.0, 40 / 5.5)
    assert (found["share_of_read"], found["share_of_matvec"]) == (2 / 5.5, 4 / 5.5)
    assert found["overhead_share"] == 1 - 4 / 5.5


def test_every_repeat_begins_anew_and_leaves_out_its_first_steps() -> None:
    models: list[Counts] = []

    def make() -> Counts:
        models.append(Counts())
        return models[-1]

    reference, facts = Reference(torch.device("cpu"), SMALL_CACHE), {"n_blocks": 1}
    procedure = decode_timing.Procedure("authors", 12, repeats=3)
    row = decode_timing.decode_row(make, {"logits": Read("logits", 10, 40)}, procedure, reference, **facts)
    assert (row["tokens"], row["repeats"], len(reference.reads)) == (3 * 10, 3, 5)
    assert [len(model.calls) for model in models] == [procedure.room] * 3


def test_a_first_token_is_timed_once_whatever_the_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[int] = []
    monkeypatch.setattr(Tokens, "read_prompt", lambda self, length: prompts.append(length))
    rows = decoded("names=width-128-dense", "context=8,16", "prompts=4,6", "batch=1,2")["rows"]
    assert len(prompts) == 2 * 2 * (decode.PROMPT_REPEATS + WARM_UP)
    assert [set(row["first_token_seconds"]) for row in rows] == [{"4", "6"}] * 4


def test_no_second_model_is_made_where_no_prompt_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Counted(Tokens):
        def __init__(self, *given: Any, batch: int, **others: Any) -> None:
            made.append(batch)
            super().__init__(*given, batch=batch, **others)

    monkeypatch.setattr(decode, "Tokens", Counted)
    decoded("names=width-128-dense", "batch=1,2")
    assert made == [1, 2]
    decoded("names=width-128-dense", "prompts=4")
    assert made == [1, 2, 1, 1]


def test_repeats_are_told() -> None:
    shown = printed(decoded("names=width-128-dense", "repeats=2"))
    assert "2 times" in shown
    assert "the mean of 2 tokens" in shown


def test_steady_state_is_the_median_and_the_99th_percentile_of_all() -> None:
    timed = _timed(*(float(i) for i in range(1, 201)))
    counted = decode_timing.Procedure("steady", 200).counted(timed)
    found = decode_timing.summary(counted, "steady", {"logits": Read("logits", 10, 40)}, 20.0, 10.0)
    assert (found["seconds"], found["p50"], found["p99"], found["tokens"]) == (100.5, 100.5, 198.0, 200)
    calm = decode_timing.summary(_timed(1.0, 1.5, 2.0), "steady", {"logits": Read("logits", 10, 40)}, 20.0, 10.0)
    assert not calm["uneven"]


class Counts:
    """Decodes nothing, and keeps how it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def step(self) -> None:
        self.calls.append("whole")

    def step_by_part(self) -> None:
        self.calls.append("parts")

    def last_seconds(self) -> tuple[dict[str, float], float]:
        return {"logits": 1.0}, float(self.calls.count("whole"))


def test_a_result_says_how_its_tokens_were_timed() -> None:
    result = decoded("names=width-128-dense", "prompts=4")
    said = result["machine"]
    assert said["warm_up"] == decode_timing.WARM_UP
    assert "one model after another" in said["order"]
    assert "first 2 of 3 tokens are not counted" in said["order"]
    assert "mean" in said["order"]
    assert (said["prompts"]["warm_up"], said["prompts"]["repeats"]) == (WARM_UP, decode.PROMPT_REPEATS)
    assert "in turns" in said["prompts"]["order"]
    shown = " ".join(printed(result).split())
    assert "the mean of 1 tokens; 'ms a block' is the median of theirs" in shown
    steady = decoded("names=width-128-dense", "protocol=steady")["machine"]
    assert steady["order"] == "one model after another, medians"
    assert steady["prompts"] is None


def test_warm_up_tokens_are_run_and_not_timed() -> None:
    model = Counts()
    timed = decode_timing.timed_tokens(model, 3)
    assert model.calls.count("whole") == decode_timing.WARM_UP + 3
    assert [blocks for _, _, blocks in timed] == [float(decode_timing.WARM_UP + i) for i in (1, 2, 3)]


def test_a_token_of_its_own_is_timed_by_part_behind_every_fourth_and_the_last() -> None:
    model = Counts()
    timed = decode_timing.timed_tokens(model, 6)
    assert [parts is not None for _, parts, _ in timed] == [False, True, False, False, False, True]
    assert model.calls[decode_timing.WARM_UP :] == ["whole", "whole", "parts", *["whole"] * 4, "parts"]


def test_a_steady_table_shows_percentiles_and_says_where_tokens_are_too_few() -> None:
    shown = printed(decoded("names=width-128-dense", "protocol=steady"))
    assert "p99" in shown
    assert "too few for such a percentile" in shown


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a mistake is told before anything is allocated")

    monkeypatch.setattr(decode, "Reference", refuse)
    monkeypatch.setattr(decode, "make_weights", refuse)


@pytest.mark.usefixtures("nothing_is_measured")
@pytest.mark.parametrize(
    ("words", "told", "hint"),
    [
        (["names=800m-dens"], "800m-dens", "800m-dense"),
        (["names=transformers-t6"], "transformers-t6", "transformers-t5"),
        (["names=width-100-dense"], "width-100-dense", ""),
        (["names=width-128-spars"], "width-128-spars", ""),
        (["names=800m-dense-blocksmany"], "800m-dense-blocksmany", ""),
        (["names=width-128-dense-blocks"], "width-128-dense-blocks", ""),
        (["names=800m-dense-blocks"], "800m-dense-blocks", ""),
        (["names=800m-dense-int8-blocks2-int8"], "800m-dense-int8-blocks2-int8", ""),
        (["names=800m-dense-blocks2-blocks3"], "800m-dense-blocks2-blocks3", ""),
        (["widths=100"], "width-100-dense", ""),
        (["widths=128", "names=800m-dense"], "widths=", ""),
        (["tokens=2"], "tokens=2", "12"),
        (["repeats=0"], "repeats=0", ""),
        (["repeat=2"], "repeat", "repeats"),
        (["protocol=stedy"], "stedy", "steady"),
        (["batch=0"], "batch=0", ""),
        (["context=long"], "context=long", ""),
        (["contexts=16"], "contexts", "context"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    words: list[str], told: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "decode", *words]) == 2
    out, err = capsys.readouterr()
    message, *rest = err.strip().splitlines()
    assert out == ""
    assert told in message
    assert hint in "".join(rest)
    assert len(rest) <= 1
    assert "Traceback" not in err


@pytest.mark.usefixtures("nothing_is_measured")
def test_a_model_that_does_not_fit_says_how_much_it_needs_and_how_much_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode_weights, "available_memory", lambda: 3 * 10**9)
    words = ["names=width-128-dense,17b-dense", f"cache_bytes={SMALL_CACHE}"]
    assert main(["bench", "decode", *words, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "too_large"
    assert error["message"].startswith("17b-dense takes 7.")
    assert "3.0 GB of memory are free" in error["message"]
    assert "-blocksN" in error["hint"]


def test_a_context_counts_as_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_weights, "available_memory", lambda: 10**9)
    with pytest.raises(Exception, match="beside them"):
        decoded("names=width-128-dense", "context=1000000")


def test_huge_pages_are_asked_for_before_torch_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    del os.environ["THP_MEM_ALLOC_ENABLE"]
    assert main(["bench", "decode", "names=nothing"]) == 2
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    code = "import sys, efftx.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    assert main(["bench"]) == 2
    assert "efftx bench decode" in capsys.readouterr().err


def test_a_peer_that_is_not_installed_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for peers, name in ((decode_peers.TORCH_PEERS, "transformers-t5"), (decode_peers.CTRANSLATE2, "ctranslate2-gpt2")):
        monkeypatch.setitem(peers, name, replace(peers[name], package="no-such-package"))  # type: ignore[arg-type]
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
        return [(0.5, None, 0.0)] * 3

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

    utils = ModuleType("transformers.cache_utils")
    monkeypatch.setattr(utils, "DynamicCache", Cache, raising=False)
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


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_installed_peers_are_measured_beside_the_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, peer in decode_peers.TORCH_PEERS.items():
        if peer.version is None:
            pytest.skip(f"{name} is not installed")
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


@pytest.mark.parametrize("base", ["width-128-dense", "logits-128-s4", "800m-dense"])
def test_int8_and_the_number_of_blocks_stand_behind_a_name_in_either_order(base: str) -> None:
    plain, both = case_named(base), replace(case_named(base), int8=True, n_blocks=2)
    assert case_named(f"{base}-int8") == replace(plain, name=f"{base}-int8", int8=True)
    assert case_named(f"{base}-blocks2") == replace(plain, name=f"{base}-blocks2", n_blocks=2)
    for behind in ("-int8-blocks2", "-blocks2-int8"):
        assert case_named(base + behind) == replace(both, name=base + behind)


@pytest.mark.parametrize(
    ("name", "form"),
    [("width-100-dense", "multiple of 128"), ("width-128-thin", "width-N-sparse"), ("logits-100-s4", "16 dividing N")],
)
def test_a_name_that_is_made_of_numbers_says_which_numbers_it_takes(name: str, form: str) -> None:
    with pytest.raises(UserError, match=f"names={name}") as error:
        case_named(name)
    assert form in error.value.hint

"""`efftx bench decode`: how tokens are timed, by part and as a whole, and what a row says of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from efftx.bench import decode, decode_timing
from efftx.bench.decode import Asked, Tokens
from efftx.bench.decode_cases import case_named
from efftx.bench.decode_timing import Procedure, Reference
from efftx.bench.decode_weights import make_weights
from efftx.layers.cost import Read
from efftx.machine.timing import WARM_UP
from efftx.native.library import kernels
from tests.bench.decode_rows import KEYS, N_BLOCKS
from tests.bench.runs import SMALL_CACHE, decoded, printed


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes a second further whenever somebody looks at it."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(decode_timing.time, "perf_counter", lambda: float(next(ticks)))


@pytest.mark.parametrize("name", ["width-128-sparse", "logits-128-s4"])
def test_the_first_token_of_a_prompt_is_timed_by_its_length(name: str) -> None:
    result = decoded(f"names={name}", "prompts=3,200", "batch=2")
    (row,) = result["rows"]
    assert set(row["first_token_seconds"]) == {"3", "200"}
    assert all(seconds > 0 for seconds in row["first_token_seconds"].values())
    assert "first of 200, ms" in printed(result)


@pytest.mark.parametrize("name", ["width-128-dense-int8", "width-128-sparse-int4"])
def test_a_quantised_model_has_no_first_tokens_of_its_own_for_it_reads_prompts_in_float(name: str) -> None:
    result = decoded(f"names=width-128-dense,{name}", "prompts=3")
    assert [set(row["first_token_seconds"]) for row in result["rows"]] == [{"3"}, set()]
    assert f"not measured: {name}: its first tokens" in " ".join(printed(result).split())


def test_every_weight_has_been_read_by_a_token_before_the_first_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[int] = set()
    kept: list[Any] = []

    class Watched(Tokens):
        def step(self) -> torch.Tensor:
            read.update(map(id, self._next_blocks()))
            read.add(id(self.weights.heads[self._head % len(self.weights.heads)]))
            return super().step()

    def timed(make: Any, *given: Any, **facts: Any) -> dict[str, Any]:
        weights = make().weights
        kept.append(weights)
        assert set(map(id, [*weights.blocks, *weights.heads])) == read
        return {}

    monkeypatch.setattr(decode, "Tokens", Watched)
    monkeypatch.setattr(decode, "decode_row", timed)
    asked = Asked(Procedure("authors", 12), [16], [1], [], 0)
    decode.decode_rows("width-128-dense", asked, Reference(torch.device("cpu"), 2**24))
    assert len(kept[0].blocks) > 6
    assert len(kept[0].heads) > 1


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


def _timed(*seconds: float, stolen: float | None = None) -> list[decode_timing.Timed]:
    return [decode_timing.Timed(t, {"logits": t / 2}, t / 4, stolen) for t in seconds]


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
    assert made == [1, 1, 2], "once around the ring, then a batch each"
    decoded("names=width-128-dense", "prompts=4")
    assert made == [1, 1, 2, 1, 1, 1]


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


def test_what_the_host_kept_is_a_share_of_all_processors_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(timed: list[decode_timing.Timed]) -> Any:
        return decode_timing.summary(timed, "steady", {"logits": Read("logits", 10, 40)}, 20.0, 10.0)["stolen_share"]

    monkeypatch.setattr(decode_timing.os, "cpu_count", lambda: 4)
    assert share([*_timed(1.0, 3.0, stolen=0.0), *_timed(6.0, stolen=2.0)]) == 2.0 / 10.0 / 4
    assert share(_timed(1.0, stolen=0.0)) == 0.0
    assert share([*_timed(1.0, stolen=0.5), *_timed(1.0)]) is None


def test_each_token_has_what_the_host_kept_while_it_was_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = iter(range(1000))
    monkeypatch.setattr(decode_timing, "stolen_seconds", lambda: next(kept) ** 2 / 8)
    timed = decode_timing.timed_tokens(Counts(), 3)
    begun = [decode_timing.WARM_UP + 2 * i for i in range(3)]
    assert [one.stolen for one in timed] == [((n + 1) ** 2 - n**2) / 8 for n in begun]
    monkeypatch.setattr(decode_timing, "stolen_seconds", lambda: None)
    assert [one.stolen for one in decode_timing.timed_tokens(Counts(), 2)] == [None, None]


@pytest.mark.parametrize(("share", "reason"), [(0.0625, "its host kept 6.2 %"), (0.0, "was the machine busy?")])
def test_an_uneven_row_is_told_with_what_is_known_of_the_host(share: float, reason: str) -> None:
    result = decoded("names=width-128-dense")
    result["rows"][0] |= {"uneven": True, "stolen_share": share}
    assert reason in " ".join(printed(result).split())


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
    assert [one.blocks for one in timed] == [float(decode_timing.WARM_UP + i) for i in (1, 2, 3)]


def test_a_token_of_its_own_is_timed_by_part_behind_every_fourth_and_the_last() -> None:
    model = Counts()
    timed = decode_timing.timed_tokens(model, 6)
    assert [one.parts is not None for one in timed] == [False, True, False, False, False, True]
    assert model.calls[decode_timing.WARM_UP :] == ["whole", "whole", "parts", *["whole"] * 4, "parts"]


def test_a_steady_table_shows_percentiles_and_says_where_tokens_are_too_few() -> None:
    shown = printed(decoded("names=width-128-dense", "protocol=steady"))
    assert "p99" in shown
    assert "too few for such a percentile" in shown

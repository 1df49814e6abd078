from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efftx.errors import UserError
from efftx.reproduce import recording
from efftx.reproduce.measures import MODULES, attention, measure_named
from efftx.reproduce.measures.attention import printed_entries, score_entries
from efftx.reproduce.measures.lsh import _one_round, collision_closed_form, collision_probability
from efftx.reproduce.measures.measure import Measure, fitted_exponent
from efftx.reproduce.trainer import Trainer
from efftx.study.experiments import load_experiments
from efftx.study.records import RecordStore
from efftx.study.status import state_of
from efftx.study.sweeps import Run

from ..fakes import FakeTrainer, reproduce


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for the benchmark: time and memory follow known powers of the length."""
    asked: list[dict[str, Any]] = []

    def attention_time(parameters: dict[str, Any]) -> dict[str, float]:
        asked.append(parameters)
        power = 1 if parameters["attention"] == "lsh" else 2
        return {"seconds": 1e-6 * parameters["length"] ** power, "peak_bytes": 8.0 * parameters["length"] ** power}

    monkeypatch.setattr(attention.bench, "attention_time", attention_time)
    return asked


def test_two_buckets_collide_by_the_angle_between() -> None:
    for theta in (0.0, 0.3, 1.0, math.pi / 2, 3.0, math.pi):
        assert collision_closed_form(theta, 2, 1) == pytest.approx(1 - theta / math.pi, abs=1e-12)


def test_the_integral_is_the_closed_form_where_there_is_one() -> None:
    for theta in (0.0, 0.3, 1.0, math.pi / 2, 3.0, math.pi):
        assert _one_round(theta, 2) == pytest.approx(1 - theta / math.pi, abs=1e-9)


def test_at_a_right_angle_buckets_are_independent() -> None:
    # x r_i and y r_i are then independent, so the two hashes are, and each is uniform over b buckets.
    for n_buckets in (2, 4, 16, 64):
        assert collision_closed_form(math.pi / 2, n_buckets, 1) == pytest.approx(1 / n_buckets, rel=1e-4)


def test_the_same_vector_always_meets_itself_and_its_opposite_never() -> None:
    for n_buckets in (2, 4, 16, 64):
        assert collision_closed_form(0.0, n_buckets, 1) == pytest.approx(1.0, abs=1e-5)
        assert collision_closed_form(math.pi, n_buckets, 3) == pytest.approx(0.0, abs=1e-9)


def test_rounds_are_independent() -> None:
    one = collision_closed_form(1.0, 8, 1)
    assert collision_closed_form(1.0, 8, 4) == pytest.approx(1 - (1 - one) ** 4)


def test_four_buckets_agree_with_a_plain_simulation() -> None:
    rng = np.random.default_rng(0)
    theta, draws = 0.8, 200_000
    x, y = np.array([1.0, 0.0, 0.0]), np.array([math.cos(theta), math.sin(theta), 0.0])
    r = rng.standard_normal((draws, 3, 2))
    first, second = (np.einsum("d,ndk->nk", v, r) for v in (x, y))
    buckets = [np.argmax(np.concatenate([p, -p], axis=1), axis=1) for p in (first, second)]
    error = math.sqrt(0.25 / draws)
    assert collision_closed_form(theta, 4, 1) == pytest.approx(float((buckets[0] == buckets[1]).mean()), abs=5 * error)


@pytest.mark.parametrize(("n_buckets", "n_hashes"), [(2, 1), (4, 1), (8, 4)])
def test_the_products_own_hashing_collides_as_the_closed_form_says(n_buckets: int, n_hashes: int) -> None:
    columns = {"60": {"degrees": 60}, "worst": {}}
    own = {"n_buckets": n_buckets, "n_hashes": n_hashes}
    found = collision_probability({"draws": 20_000, "step_degrees": 20, "columns": columns}, 0, "row", own)
    assert found["metrics"]["worst"]["deviation"] < 5
    assert found["metrics"]["60"]["probability"] == found["series"]["measured"][3]
    assert found["series"]["measured"][0] == 1.0
    assert found["series"]["measured"][-1] == 0.0


def test_counted_scores_are_those_of_the_chunks() -> None:
    full = {"attention": "full", "batch": 2, "n_heads": 3}
    lsh = {"attention": "lsh", "batch": 2, "n_heads": 3, "n_hashes": 4, "chunk_len": 8}
    assert score_entries(64, full) == 2 * 3 * 64 * 64
    assert score_entries(64, lsh) == 2 * 3 * 4 * (64 // 8) * 8 * 16, "8 chunks of 8 queries by 16 keys, 4 rounds"
    assert score_entries(64, lsh) == 2 * 3 * 4 * 2 * 64**2 / 8, "2 l^2 / n_c a round"
    assert printed_entries(64, lsh) == 2 * 3 * 4 * 64 * (4 * 64 / 8) ** 2
    assert printed_entries(64, lsh) > 60 * score_entries(64, lsh)
    assert score_entries(128, {"attention": "lsh"}) == 4 * 2 * 2 * 128 * 64, "the defaults of what is timed"


def test_the_exponent_of_a_power_is_its_power() -> None:
    lengths = [256, 512, 4096]
    assert fitted_exponent(lengths, [3.0 * n**1.5 for n in lengths]) == pytest.approx(1.5)


def test_an_unknown_measure_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError) as unknown:
        measure_named("attention_tim")
    assert "attention_time" in unknown.value.hint


def test_table_1_is_measured_recorded_and_replayed(tmp_path: Path, bench: list[dict[str, Any]]) -> None:
    store, e = RecordStore(tmp_path), load_experiments()["reformer/table1"]
    (line,) = reproduce([e], "smoke", say=lambda _: None, store=store, trainer=FakeTrainer())
    assert (line["ran"], line["failed"]) == (4, 0)
    lsh = store.read(e.id, "LSH, 4 rounds", 0, "smoke")
    assert lsh is not None
    assert lsh.metrics["exponent of time"]["time_exponent"] == pytest.approx(1.0)
    assert lsh.metrics["scores at 64"]["entries"] == 2 * 4 * 2 * 64**2
    assert lsh.series == {
        "length": [64.0, 128.0],
        "entries": [2 * 4 * 2 * 64**2, 2 * 4 * 2 * 64 * 128],
        "entries_printed": [printed_entries(length, {**bench[-1], **lsh.config["row"]}) for length in (64, 128)],
        "seconds": pytest.approx([64e-6, 128e-6]),
        "peak_bytes": [8.0 * 64, 8.0 * 128],
    }
    assert {p["length"] for p in bench} == {64, 128}
    (line,) = reproduce([e], "smoke", verify=True, say=lambda _: None, store=store, trainer=FakeTrainer())
    assert (line["fresh"], line["stale"]) == (4, 0)


def test_figure_5b_asks_for_every_length_and_its_counts_are_replayed(
    tmp_path: Path, bench: list[dict[str, Any]]
) -> None:
    store, e = RecordStore(tmp_path), load_experiments()["reformer/figure5b"]
    reproduce([e], "smoke", say=lambda _: None, store=store, trainer=FakeTrainer())
    assert len(bench) == len(e.rows) * 2
    assert {(p["length"], p["batch"]) for p in bench} == {(128, 2), (256, 1)}
    found = store.read(e.id, "LSH-8", 0, "smoke")
    assert found is not None
    assert found.metrics["256/1"]["seconds"] == pytest.approx(256e-6)
    (line,) = reproduce([e], "smoke", verify=True, say=lambda _: None, store=store, trainer=FakeTrainer())
    assert (line["fresh"], line["not replayable"]) == (len(e.rows), 0)
    assert found.first_losses == [2 * 2 * 8 * 2 * 128 * 64, 1 * 2 * 8 * 2 * 256 * 64], "scores of 8 rounds of 2 heads"
    found.first_losses = []
    store.write(found)
    (line,) = reproduce([e], "smoke", verify=True, say=lambda _: None, store=store, trainer=FakeTrainer())
    assert (line["fresh"], line["not replayable"]) == (len(e.rows) - 1, 1), "an older record holds no count"
    assert state_of(e, store, FakeTrainer(), ["smoke"])["state"] == "recorded"


def test_the_circle_is_the_hash_of_every_direction_and_opposite_directions_are_in_opposite_buckets() -> None:
    parameters = {"draws": 10, "step_degrees": 90, "columns": {}}
    own = {"n_buckets": 4, "n_hashes": 1, "circle": True}
    series = collision_probability(parameters, 0, "row", own)["series"]
    assert series["circle_degrees"] == [float(degree) for degree in range(360)]
    for rotation in range(3):
        codes = series[f"circle_codes_{rotation}"]
        assert set(codes) == {0.0, 1.0, 2.0, 3.0}
        assert all((codes[d] + 2) % 4 == codes[d + 180] for d in range(180))
    assert series["circle_codes_0"] != series["circle_codes_1"]
    assert (
        "circle_degrees" not in collision_probability(parameters, 0, "row", {"n_buckets": 4, "n_hashes": 1})["series"]
    )


def test_every_measure_of_the_table_is_one_of_its_module_and_every_one_of_a_module_is_in_the_table() -> None:
    modules = {name: importlib.import_module(f"efftx.reproduce.measures.{name}") for name in set(MODULES.values())}
    assert {name: module for module, found in modules.items() for name in found.MEASURES} == MODULES


def test_a_record_says_how_many_threads_the_timed_process_had(monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"metrics": {"off, time": {"time_error": 1.0}}, "threads": 7}
    monkeypatch.setattr(recording, "measure_named", lambda name: Measure(lambda *given: dict(result)))
    run = Run("Transformer, enwik8", 0, "smoke")
    record = recording.make_record(load_experiments()["scaling/plan"], run, Trainer())
    assert record.environment["threads"] == 7

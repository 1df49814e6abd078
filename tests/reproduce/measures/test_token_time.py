"""What the measures of a token's time make of the rows that `efftx bench decode` prints."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

from efftx.errors import UserError
from efftx.reproduce.measures import measure_named
from efftx.reproduce.measures import token_time as module
from efftx.reproduce.measures.token_time import token_counts, token_time, width_counts, width_time
from efftx.study.experiments import load_experiments
from efftx.study.records import RecordStore
from efftx.study.status import measure_parameters

MACHINE = {
    "read_bytes_per_second": 2e10,
    "matvec_bytes_per_second": 1.8e10,
    "last_level_cache_bytes": 3.2e7,
    "threads": 3,
}


def _row(name: str, seconds: float, block: float, weights: int, batch: int = 1, width: int = 64) -> dict[str, Any]:
    return {
        "name": name,
        "batch": batch,
        "length": 16,
        "width": width,
        "seconds": seconds,
        "p50": 0.9 * seconds,
        "p99": 1.5 * seconds,
        "tokens_per_second": batch / seconds,
        "bandwidth": 4 * weights / seconds,
        "first_token_seconds": {"16": 3 * seconds, "512": 7 * seconds},
        "block_seconds": block,
        "n_blocks": 6,
        "weights": weights,
        "bytes": 4 * weights,
        "bound_seconds": 4 * weights / 2e10,
        "share_of_read": 0.5,
        "share_of_matvec": 0.6,
        "overhead_share": 0.4,
        "uneven": False,
        "stolen_share": None,
        "spread": 0.1,
        "peak_bytes": 10**9,
        "distinct_blocks": 12,
        "components": {
            "logits": {"seconds": 0.001, "weights": 100, "bytes": 400},
            "QKV": {"seconds": 0.002, "weights": 50, "bytes": 200},
        },
    }


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What processes print, `before` one after the other and then `rows`, and the words they were asked with."""
    told: dict[str, Any] = {"rows": [], "before": [], "runs": 0, "protocol": "authors"}

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        told["command"], told["env"] = command, options["env"]
        rows = told["before"][told["runs"]] if told["runs"] < len(told["before"]) else told["rows"]
        told["runs"] += 1
        printed = told.get("stdout", json.dumps({"rows": rows, "machine": MACHINE, "protocol": told["protocol"]}))
        return subprocess.CompletedProcess(command, told.get("code", 0), printed, "the last words")

    monkeypatch.setattr(module.subprocess, "run", run)
    return told


PARAMETERS = {
    "options": ["protocol=authors"],
    "cases": {"dense": "a", "sparse": "b"},
    "against": {"sparse": "a"},
    "columns": {"one": {}, "batch 2": {"batch": 2}},
}


def test_a_speed_up_is_over_the_dense_model_of_the_same_process_and_batch(bench: dict[str, Any]) -> None:
    bench["rows"] = [
        _row("a", 0.10, 0.012, 1000),
        _row("a", 0.12, 0.016, 1000, batch=2),
        _row("b", 0.02, 0.003, 200),
        _row("b", 0.04, 0.008, 200, batch=2),
    ]
    answer = token_time(PARAMETERS, 4, "sparse", {})
    found = answer["metrics"]
    assert answer["threads"] == 3, "of the process that timed"
    assert found["one"]["speedup"] == pytest.approx(5)
    assert "stolen" not in found["one"], "nothing is known of the host"
    assert found["one"]["block_speedup"] == pytest.approx(4)
    assert found["one"]["block_milliseconds"] == pytest.approx(3)
    assert found["batch 2"]["speedup"] == pytest.approx(3)
    assert found["batch 2"]["row_milliseconds"] == pytest.approx(20)
    assert found["batch 2"]["row_block_milliseconds"] == pytest.approx(4)
    # A sixth of the 400 bytes that are no logits in 3 ms, where the token's 800 in 20 ms are half of the bandwidth.
    assert found["one"]["block_share_of_read"] == pytest.approx(50 * (400 / 6 / 0.003) / (800 / 0.02))
    assert bench["command"][-4:] == ["names=a,b", "protocol=authors", "seed=5", "--json"]
    assert bench["env"]["THP_MEM_ALLOC_ENABLE"] == "1"


def _timed(seconds: float, *, uneven: bool, spread: float) -> list[dict[str, Any]]:
    return [{**_row("a", seconds, 0.01, 1000, batch), "uneven": uneven, "spread": spread} for batch in (1, 2)]


def test_what_was_disturbed_is_timed_again(bench: dict[str, Any]) -> None:
    bench["before"] = [_timed(9.0, uneven=True, spread=3.0), _timed(0.1, uneven=False, spread=0.5)]
    bench["rows"] = _timed(7.0, uneven=False, spread=0.1)  # not asked for: the one before was even
    found = token_time(PARAMETERS, 0, "dense", {})["metrics"]["one"]
    assert (found["seconds"], found["uneven"], found["tries"], bench["runs"]) == (0.1, 0.0, 2.0, 2)


def test_a_column_has_percentiles_rates_and_the_first_token_behind_its_prompt(bench: dict[str, Any]) -> None:
    bench["rows"] = [_row("a", 0.1, 0.01, 10**6), _row("a", 0.2, 0.02, 10**6, batch=2)]
    columns = {"one": {}, "batch 2": {"batch": 2, "prompt": 512}}
    found = token_time({**PARAMETERS, "columns": columns}, 0, "dense", {})["metrics"]
    assert found["one"]["p50_milliseconds"] == pytest.approx(90)
    assert found["one"]["p99_milliseconds"] == pytest.approx(150)
    assert found["one"]["gigabytes_per_second"] == pytest.approx(0.04)
    assert found["batch 2"]["tokens_per_second"] == pytest.approx(10)
    assert found["batch 2"]["first_token_milliseconds"] == pytest.approx(1400)
    assert "first_token_milliseconds" not in found["one"]


def test_a_steady_run_is_kept_with_its_percentiles(bench: dict[str, Any]) -> None:
    bench["protocol"], bench["rows"] = "steady", _timed(1.0, uneven=True, spread=3.0)
    bench["rows"][0]["stolen_share"] = 0.125
    found = token_time(PARAMETERS, 0, "dense", {})["metrics"]["one"]
    assert found["tries"] == bench["runs"] == 1
    assert found["stolen"] == 12.5


@pytest.mark.parametrize("first", [True, False])
def test_the_evenest_is_kept_where_all_were_disturbed_not_the_fastest(bench: dict[str, Any], first: bool) -> None:
    slow_and_even, others = _timed(9.0, uneven=True, spread=1.5), [_timed(0.1, uneven=True, spread=3.0)]
    bench["before"] = [slow_and_even, *others] if first else [*others, slow_and_even]
    bench["rows"] = _timed(0.05, uneven=True, spread=4.0)
    found = token_time(PARAMETERS, 0, "dense", {})["metrics"]["one"]
    assert (found["seconds"], found["uneven"], found["tries"], bench["runs"]) == (9.0, 1.0, 3.0, 3)


def test_fewer_uneven_rows_are_evener_whatever_their_spread(bench: dict[str, Any]) -> None:
    one_uneven = _timed(9.0, uneven=True, spread=8.0)
    one_uneven[1]["uneven"] = False
    bench["before"], bench["rows"] = (
        [_timed(0.1, uneven=True, spread=2.5), one_uneven],
        _timed(0.2, uneven=True, spread=2),
    )
    assert token_time(PARAMETERS, 0, "dense", {})["metrics"]["one"]["seconds"] == 9.0


def test_shares_are_percent_and_sizes_millions(bench: dict[str, Any]) -> None:
    bench["rows"] = [_row("a", 0.10, 0.012, 3_000_000), _row("a", 0.12, 0.016, 3_000_000, batch=2)]
    found = token_time(PARAMETERS, 0, "dense", {})["metrics"]["one"]
    shares = {name: found[name] for name in ("share_of_read", "share_of_matvec", "overhead")}
    assert shares == pytest.approx({"share_of_read": 50.0, "share_of_matvec": 60.0, "overhead": 40.0})
    assert (found["weights"], found["megabytes"]) == (3.0, 12.0)
    assert found["bound_seconds"] == 12e6 / 2e10


def test_a_dense_row_is_timed_alone(bench: dict[str, Any]) -> None:
    bench["rows"] = [_row("a", 0.10, 0.012, 1000), _row("a", 0.12, 0.016, 1000, batch=2)]
    assert token_time(PARAMETERS, 0, "dense", {})["metrics"]["one"]["speedup"] == 1
    assert bench["command"][-4] == "names=a"


def test_a_row_that_is_compared_with_nothing_has_no_speed_up(bench: dict[str, Any]) -> None:
    bench["rows"] = [_row("a", 0.1, 0.01, 1000)]
    columns, cases = {"one": {}}, {"dense": "a"}
    has = {
        bool(against): set(
            token_time({**PARAMETERS, "columns": columns, "cases": cases, "against": against}, 0, "dense", {})[
                "metrics"
            ]["one"]
        )
        for against in ({}, {"sparse": "a"})
    }
    assert has[True] - has[False] == {"speedup", "block_speedup"}


def test_the_parts_and_the_machines_rates_are_kept(bench: dict[str, Any]) -> None:
    bench["rows"] = [_row("a", 0.10, 0.012, 1000), _row("a", 0.12, 0.016, 1000, batch=2)]
    series = token_time(PARAMETERS, 0, "dense", {})["series"]
    assert series["milliseconds, QKV"] == [2.0]
    assert series["gigabytes a second, read"] == [20.0]


def test_exponents_are_fitted_from_a_width_on(bench: dict[str, Any]) -> None:
    widths = (64, 128, 256)
    bench["rows"] = [
        row
        for width in widths
        for row in (
            _row(f"width-{width}-dense", 1, 1e-6 * width**2 + (width == 64), 100 + 6 * width**2, width=width),
            _row(f"width-{width}-sparse", 1, 1e-6 * width**1.5, 100 + 6 * width, width=width),
        )
    ]
    parameters = {
        "widths": widths,
        "fit_from": 128,
        "options": [],
        "columns": {"exponent": {}, "at 128": {"width": 128}},
    }
    dense = width_time(parameters, 0, "dense", {"kind": "dense"})["metrics"]
    assert dense["exponent"]["time_exponent"] == pytest.approx(2)
    assert dense["exponent"]["weights_exponent"] == pytest.approx(2)
    assert bench["command"][5] == "names=width-64-dense,width-128-dense,width-256-dense"
    sparse = width_time(parameters, 0, "sparse", {"kind": "sparse"})["metrics"]
    assert sparse["exponent"]["time_exponent"] == pytest.approx(1.5)
    assert sparse["at 128"]["block_speedup"] == pytest.approx(128**0.5)
    assert sparse["at 128"]["weights"] == pytest.approx(128 / 1e6)
    of_a_token = [sparse["at 128"][name] for name in ("p50_milliseconds", "p99_milliseconds", "share_of_read")]
    assert of_a_token == pytest.approx([900, 1500, 50])


def test_a_widths_series_are_over_the_width_and_a_speed_up_is_above_one_where_sparse_is_faster(
    bench: dict[str, Any],
) -> None:
    blocks = {(64, "dense"): 0.004, (64, "sparse"): 0.002, (128, "dense"): 0.024, (128, "sparse"): 0.003}
    bench["rows"] = [_row(f"width-{w}-{kind}", 1, s, 100 + 6 * w, width=w) for (w, kind), s in blocks.items()]
    given = {"widths": (64, 128), "fit_from": 64, "options": [], "columns": {"at 128": {"width": 128}}}
    found = width_time(given, 0, "sparse", {"kind": "sparse"})
    series = {name: pytest.approx(values) for name, values in found["series"].items()}
    assert series == {"width": [64.0, 128.0], "block_milliseconds": [2.0, 3.0], "block_speedup": [2.0, 8.0]}
    assert found["metrics"]["at 128"]["block_speedup"] == pytest.approx(8)
    dense = width_time(given, 0, "dense", {"kind": "dense"})
    assert dense["series"]["block_milliseconds"] == pytest.approx([4.0, 24.0])
    assert dense["series"]["block_speedup"] == [1.0, 1.0]


def test_a_process_that_prints_no_json_is_told_with_its_last_words(bench: dict[str, Any]) -> None:
    bench |= {"stdout": "", "code": 137}
    with pytest.raises(UserError, match="code 137") as error:
        token_time(PARAMETERS, 0, "dense", {})
    assert error.value.hint == "the last words"


def test_a_mistake_of_the_bench_is_handed_on(bench: dict[str, Any]) -> None:
    bench["stdout"] = json.dumps({"error": {"kind": "too_large", "message": "17b takes 40 GB", "hint": "smaller"}})
    with pytest.raises(UserError, match="40 GB"):
        token_time(PARAMETERS, 0, "dense", {})


# ---- counts ----------------------------------------------------------------------------------------------------------

SERIES = {
    "last-level cache, megabytes": [33.554432],
    "distinct blocks": [2.0],
    "distinct weights, megabytes": [0.0],
}


def test_the_weights_of_a_token_are_counted_again_from_shapes() -> None:
    """By hand, d_model 256 and d_ff 1024: four projections, two layers, two norms; the head, its norm, a position."""
    block = 4 * (256**2 + 256) + (256 * 1024 + 1024) + (1024 * 256 + 256) + 2 * 2 * 256
    head = 256 * 32_000 + 32_000 + 2 * 256 + 256
    parameters = {"cases": {"dense": "width-256-dense-blocks2"}, "columns": {"one": {}, "8 rows": {"batch": 8}}}
    parameters["options"] = ["protocol=authors", "batch=1,8"]
    metrics = {"one": {"weights": 7.0}, "8 rows": {"weights": 8.0}}
    recorded, again = token_counts(parameters, "dense", {}, {"metrics": metrics, "series": SERIES})
    assert recorded[2:] == [7.0], "of one row alone"
    assert again[2:] == [(2 * block + head) / 1e6]
    tokens = math.ceil(8 * 33_554_432 / (4 * (2 * block + head - 256)))
    assert again[0] == 2 * tokens, "reads of one weight are eight caches apart"


def test_a_blocks_weights_are_counted_again_at_every_width() -> None:
    parameters = {"columns": {"256": {"width": 256}, "exponent": {}}}
    block = 4 * (256**2 + 256) + (256 * 1024 + 1024) + (1024 * 256 + 256) + 2 * 2 * 256
    metrics = {"256": {"weights": 7.0}, "exponent": {"weights_exponent": 2.0}}
    recorded, again = width_counts(parameters, "dense", {"kind": "dense"}, {"metrics": metrics, "series": {}})
    around = 3 * 256 / 6  # the last norm and the position, of six blocks
    assert (recorded, again) == ([7.0], [(block + around) / 1e6])


@pytest.mark.parametrize("id", ["scaling/table1", "scaling/today", "scaling/width"])
def test_the_counts_of_the_shipped_records_come_out(id: str) -> None:
    e, store = load_experiments()[id], RecordStore(Path(__file__).parents[3] / "results")
    recount = measure_named(str(e.measure)).recount
    records = [record for record in store.read_all(id) if record.seed == 0]
    assert records
    for record in records:
        own, result = dict(e.rows[record.row].parameters), {"metrics": record.metrics, "series": record.series}
        parameters = measure_parameters(e, record.row, record.size)
        assert recount is not None
        recorded, again = recount(parameters, record.row, own, result)
        assert recorded == again
        assert len(recorded) >= 2

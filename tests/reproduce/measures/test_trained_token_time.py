"""Quality and time of one checkpoint: the numbers are of the run that was trained, and of nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from efftx.plan import costs
from efftx.reproduce.measures.trained import configured
from efftx.reproduce.measures.trained_token_time import PROMPT, WARM_UP, first_losses, trained_token_time
from efftx.study.experiments import load_experiments
from efftx.study.records import RecordStore
from efftx.study.sweeps import chosen

PARAMETERS: dict[str, Any] = {
    "tokens": 5,
    "cache_bytes": 65536,
    "against": ["sparse_ff.N=0"],
    "overrides": [
        *("model=scaling", "size=smoke", "data=text", "data.path=efftx:samples/c4", "stack=decoder", "threads=1"),
        *("sparse_qkv.S=0", "evaluation.batches=1"),
    ],
    "columns": {"log-perplexity": {}, "a token": {}},
}
COMMITTED = RecordStore(Path(__file__).parents[3] / "results")
SPARSE: dict[str, Any] = {"overrides": []}
DENSE: dict[str, Any] = {"overrides": ["sparse_ff.N=0"]}


@pytest.fixture(autouse=True)
def _own_runs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("EFFTX_RUNS", str(tmp_path_factory.mktemp("runs")))


def test_quality_is_the_run_s_and_the_dense_model_is_trained_beside_it() -> None:
    result = trained_token_time(PARAMETERS, 1, "N = 16", SPARSE)
    metrics = result["metrics"]["log-perplexity"]
    assert result["metrics"]["a token"] == metrics
    runs = {path: json.loads((path / "config.json").read_text()) for path in Path(os.environ["EFFTX_RUNS"]).iterdir()}
    assert sorted(run["config"]["sparse_ff"]["N"] > 0 for run in runs.values()) == [False, True]
    assert metrics["parameters_read"] == costs(configured(PARAMETERS["overrides"], 1))["active_parameters"]
    assert metrics["loss"] > 0
    assert metrics["token_milliseconds"] > 0
    assert metrics["speedup"] > 0
    assert result["threads"] == 1


def test_what_a_token_reads_has_the_keys_and_values_of_the_one_in_the_middle() -> None:
    result = trained_token_time(PARAMETERS, 1, "dense", DENSE)
    metrics, rate = result["metrics"]["a token"], 1e9 * result["series"]["gigabytes a second, read"][0]
    config = configured([*PARAMETERS["overrides"], *DENSE["overrides"]], 1)
    behind = 1 + PROMPT + WARM_UP + PARAMETERS["tokens"] // 2
    n_bytes = 4 * (metrics["parameters_read"] + 2 * config.n_layers * behind * config.d_model)
    assert metrics["share_of_read"] / 100 * metrics["token_milliseconds"] / 1e3 * rate == pytest.approx(n_bytes)


def test_the_dense_row_is_timed_against_itself_alone() -> None:
    result = trained_token_time(PARAMETERS, 1, "dense", DENSE)
    assert result["metrics"]["a token"]["speedup"] == 1.0
    assert len(list(Path(os.environ["EFFTX_RUNS"]).iterdir())) == 1


def test_a_finished_run_is_taken_as_it_is() -> None:
    first = trained_token_time(PARAMETERS, 1, "N = 16", SPARSE)["metrics"]["a token"]
    (before,) = {tuple(sorted((p, p.stat().st_mtime_ns) for p in Path(os.environ["EFFTX_RUNS"]).rglob("*.jsonl")))}
    again = trained_token_time(PARAMETERS, 1, "N = 16", SPARSE)["metrics"]["a token"]
    (after,) = {tuple(sorted((p, p.stat().st_mtime_ns) for p in Path(os.environ["EFFTX_RUNS"]).rglob("*.jsonl")))}
    assert before == after
    assert first["loss"] == again["loss"]


def test_a_replay_gives_the_losses_of_the_row_s_own_training() -> None:
    sparse, dense = (first_losses(PARAMETERS, 1, "", own) for own in (SPARSE, DENSE))
    assert len(sparse) == len(dense) == 3
    assert sparse != dense
    assert sparse == first_losses(PARAMETERS, 1, "", SPARSE)


def test_at_size_cpu_the_models_of_figure_3_are_decoded_each_at_the_rate_that_was_chosen_for_it() -> None:
    experiments = load_experiments()
    item, figure = experiments["scaling/trained"], experiments["scaling/figure3"]
    parameters = item.parameters["cpu"]
    for row in item.rows_at("cpu"):
        choice = chosen(figure, row, "cpu", COMMITTED)
        assert choice is not None, f"the sweep of '{row}' is not recorded"
        theirs = configured([*figure.row_overrides(row, "cpu"), f"optimizer.lr={choice.value}"], 0)
        for further in (item.rows[row].parameters["overrides"], parameters["against"] if row == "dense" else None):
            if further is not None:
                assert configured([*parameters["overrides"], *further], 0) == theirs, row

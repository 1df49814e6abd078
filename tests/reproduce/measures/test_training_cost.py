"""What a training step costs is measured at every depth and length, and fitted."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch

from efftx.config.compose import compose
from efftx.machine.timing import Timing
from efftx.plan import plan
from efftx.reproduce.measures import training
from efftx.reproduce.measures.training import estimated_bytes, host_memory, training_cost, training_estimate

PARAMETERS = {
    "overrides": ["model=transformer", "data=stdlib", "size=smoke", "dropout=0", "positions.kind=learned", "threads=1"],
    **{"vocab_size": 256, "depths": [1, 2], "at_length": 32, "lengths": [32, 64, 128], "at_depth": 1},
    **{"warm_up": 0, "repeats": 1, "columns": {"all": {}, "of 64": {"length": 64}}},
}


def test_exponents_are_those_of_the_times_and_of_the_counted_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    def interleaved(calls: dict[str, Any], **how: Any) -> dict[str, Timing]:
        places = {name: ast.literal_eval(name) for name in calls}  # (depth, length)
        return {name: Timing(depth * length**2 * 1e-6, 0.0) for name, (depth, length) in places.items()}

    monkeypatch.setattr(training, "interleaved", interleaved)
    found = training_cost(PARAMETERS, 0, "row", {"overrides": []})
    own = found["metrics"]["all"]
    assert own["time_exponent"] == pytest.approx(2)
    assert own["depth_time_exponent"] == pytest.approx(1)
    assert own["seconds"] == pytest.approx(128**2 * 1e-6)
    assert 1 < own["flops_exponent"] < 2
    assert own["depth_ratio"] > 1
    assert found["metrics"]["of 64"]["megabytes"] > 0
    assert found["series"]["seconds_by_length"] == pytest.approx([n**2 * 1e-6 for n in (32, 64, 128)])


def test_hashing_makes_the_flops_proportional_to_the_length() -> None:
    hashed = {"overrides": ["attention=[lsh]", "lsh.chunk_len=8", "lsh.n_hashes=1"]}
    own = training_cost(PARAMETERS, 0, "row", hashed)["metrics"]["all"]
    assert own["flops_exponent"] == pytest.approx(1, abs=0.02)
    assert own["seconds"] > 0


def test_an_estimate_meets_the_step_at_the_rate_measured_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ["model=transformer", "data=stdlib", "size=smoke", "dropout=0", "device=cpu", "threads=1"]
    given = {"overrides": shape, "warm_up": 0, "repeats": 1, "columns": {"off": {}}}
    _, flops_of_product = training.matmul_call(torch.device("cpu"))
    threads = []

    def interleaved(calls: dict[str, Any], **how: Any) -> dict[str, Timing]:
        threads.append(torch.get_num_threads())
        return {"step": Timing(0.5, 0.0), "products": Timing(5 * flops_of_product / 1e9, 0.0)}

    monkeypatch.setattr(training, "interleaved", interleaved)
    before = torch.get_num_threads()
    answer = training_estimate(given, 0, "row", {"overrides": []})
    metrics = answer["metrics"]["off"]
    assert answer["threads"] == 1, "of the timing, not of this process"
    planned = plan(compose(shape))
    flops_of_step = planned["training_flops"] / compose(shape).training.steps
    assert metrics["planned_seconds"] == pytest.approx(flops_of_step / (1e9 * planned["utilisation"]))
    assert metrics["time_error"] == pytest.approx(100 * (metrics["planned_seconds"] / 0.5 - 1))
    assert abs(metrics["memory_error"]) < 10
    assert (threads, torch.get_num_threads()) == ([1], before)
    recorded, again = estimated_bytes(given, "row", {"overrides": []}, {"metrics": {"off": metrics}})
    assert recorded == again


def test_with_parameters_in_the_hosts_memory_the_device_holds_a_block_or_two_of_them() -> None:
    shape = ["model=reformer", "data=stdlib", "size=smoke", "dropout=0", "threads=1", "device=cpu", "d_ff=512"]
    given = {"overrides": shape, "vocab_size": 256, "depths": [2, 8]}
    given["columns"] = {"2": {"depth": 2}, "8": {"depth": 8}}
    offloaded = ["distributed.strategy=fsdp", "distributed.offload=true"]
    device, host = (host_memory(given, 0, "row", {"overrides": words})["metrics"] for words in ([], offloaded))
    assert device["8"]["host_megabytes"] == 0
    assert device["8"]["depth_ratio"] > 2
    assert host["8"]["depth_ratio"] < 1.1
    parameters = plan(compose([*shape, "n_layers=8"]))["memory_bytes"]
    kept = sum(parameters[kind] for kind in ("parameters", "gradients", "optimizer_state"))
    assert host["8"]["host_megabytes"] == pytest.approx(kept / 1e6)
    assert host["8"]["megabytes"] < device["8"]["megabytes"] - 0.7 * kept / 1e6

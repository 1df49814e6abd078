"""Time and memory of one training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from efftx.bench.stacks import attention_of, device_memory_of_step, peak_of_step, step_of
from efftx.config.schema import Config
from efftx.machine.devices import resolve_device, set_determinism, threads_of
from efftx.machine.timing import interleaved, matmul_call
from efftx.plan import Steps, default_device
from efftx.plan.flops import training_flops_by_component
from efftx.plan.memory import activation_bytes
from efftx.reproduce.measures.measure import Measure, Parameters, fitted_exponent
from efftx.reproduce.measures.trained import configured

_PRODUCTS = 5
"""So many at once take long enough to meet what the machine does beside them."""


def iteration_time(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """Seconds of one training step, beside those of another model in the same turns, and what explains the ratio.

    `parameters`: vocab_size, warm_up, repeats, device, models (name -> overrides), against (the other's overrides);
    `row_parameters`: model, its name, overrides, and `repeats` where the row has more turns than the others. Metrics,
    the same under every column: `seconds` (forward, backward and optimiser), `speedup` (the other's over them),
    `attention_seconds` (scores and values of all layers, alone, in the same turns), `rest_seconds`,
    `attention_speedup`, and what the counts allow: `score_speedup`, scores of the other over those computed here, and
    `work_speedup`, the same of all FLOPs of a step.
    """
    device, vocab_size = resolve_device(str(parameters.get("device", "cpu"))), int(parameters["vocab_size"])
    mine, other = _mine_and_other(parameters, row_parameters, seed)
    models = {"": mine} if mine == other else {"": mine, "other ": other}
    calls = {f"{name}step": step_of(config, device, vocab_size) for name, config in models.items()}
    calls |= {f"{name}attention": attention_of(config, device, vocab_size) for name, config in models.items()}
    repeats, warm_up = int(row_parameters.get("repeats", parameters["repeats"])), int(parameters["warm_up"])
    timed = interleaved(calls, repeats=repeats, device=device, warm_up=warm_up)
    seconds = {name: result.seconds for name, result in timed.items()}
    step, attention = seconds["step"], seconds["attention"]
    result = {
        "seconds": step,
        "speedup": seconds.get("other step", step) / step,
        "attention_seconds": attention,
        "rest_seconds": step - attention,
        "attention_speedup": seconds.get("other attention", attention) / attention,
        **_work_speedups(parameters, row_parameters, seed),
    }
    series = {"spread": [timed["step"].spread], "seconds_of_other": [seconds.get("other step", step)]}
    return {"metrics": dict.fromkeys(parameters["columns"], result), "series": series}


def iteration_counts(
    parameters: Parameters, row: str, row_parameters: Parameters, result: Mapping[str, Any]
) -> tuple[list[float], list[float]]:
    """What `iteration_time` recorded of counts, and the same counted anew."""
    again = _work_speedups(parameters, row_parameters, 0)
    metrics = next(iter(result["metrics"].values()))
    return [metrics[name] for name in again], list(again.values())


def _work_speedups(parameters: Parameters, row_parameters: Parameters, seed: int) -> dict[str, float]:
    mine, other = (
        training_flops_by_component(config, int(parameters["vocab_size"]))
        for config in _mine_and_other(parameters, row_parameters, seed)
    )
    return {
        "score_speedup": other["attention_scores"] / mine["attention_scores"],
        "work_speedup": sum(other.values()) / sum(mine.values()),
    }


def _mine_and_other(parameters: Parameters, row_parameters: Parameters, seed: int) -> tuple[Config, Config]:
    """The row's model, and the one that it is compared with."""
    base = parameters["models"][row_parameters["model"]]
    return configured([*base, *row_parameters["overrides"]], seed), configured([*base, *parameters["against"]], seed)


def training_memory(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """Peak activation bytes of one training step against depth at one length, and against length at one depth.

    `parameters`: overrides, vocab_size, depths with at_length, lengths with at_depth; `row_parameters`: overrides of
    the row. A column with `depth` or `length` has `megabytes` (10^6 bytes, without parameters, gradients and replay
    state) and `replay_megabytes` (choices and random states); every column has `depth_ratio`, the peak at the greatest
    depth over that at the least, `length_exponent`, fitted, and `replay_share`, the replay state over the peak (%), at
    most.
    """
    depths, lengths = ([int(number) for number in parameters[name]] for name in ("depths", "lengths"))
    by_depth = [_peak(parameters, row_parameters, seed, depth, int(parameters["at_length"])) for depth in depths]
    by_length = [_peak(parameters, row_parameters, seed, int(parameters["at_depth"]), length) for length in lengths]
    a_layer = (by_depth[-1][0] - by_depth[0][0]) / (depths[-1] - depths[0])
    config = configured([*parameters["overrides"], *row_parameters.get("overrides", [])], seed)
    activation = 4.0 * config.training.batch_size * int(parameters["at_length"]) * config.d_model
    overall = {
        "tensors_a_layer": a_layer / activation,
        "depth_ratio": by_depth[-1][0] / by_depth[0][0],
        "length_exponent": fitted_exponent(lengths, [peak for peak, _ in by_length]),
        "replay_share": max(100.0 * kept / peak for peak, kept in (*by_depth, *by_length)),
    }
    metrics: dict[str, dict[str, float]] = {}
    for column, where in parameters["columns"].items():
        metrics[column] = dict(overall)
        for name, places, values in (("depth", depths, by_depth), ("length", lengths, by_length)):
            if name in where:
                peak, kept = values[places.index(int(where[name]))]
                metrics[column] |= {"megabytes": peak / 1e6, "replay_megabytes": kept / 1e6}
    series = {
        "depth": [float(depth) for depth in depths],
        "megabytes": [peak / 1e6 for peak, _ in by_depth],
        "replay_megabytes": [kept / 1e6 for _, kept in by_depth],
        "length": [float(length) for length in lengths],
        "megabytes_by_length": [peak / 1e6 for peak, _ in by_length],
    }
    return {"metrics": metrics, "series": series}


def training_cost(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """`training_memory`, and beside it the time of the same steps and the FLOPs that they are counted to have.

    `parameters`: those, and warm_up and repeats. Metrics besides, the same under every column: `time_exponent` and
    `flops_exponent` of the length, `depth_time_exponent` of the depth, fitted, and `seconds`, of the longest row.
    Series: `seconds_by_depth`, `seconds_by_length`. All steps of a row are timed in turns.
    """
    memory = training_memory(parameters, seed, row, row_parameters)
    depths, lengths = ([int(number) for number in parameters[name]] for name in ("depths", "lengths"))
    places = [(depth, int(parameters["at_length"])) for depth in depths]
    places += [(int(parameters["at_depth"]), length) for length in lengths]
    configs = {place: _sized(parameters, row_parameters, seed, *place) for place in places}
    vocab_size = int(parameters["vocab_size"])
    device = resolve_device(configs[places[0]].device)
    timed = interleaved(
        {str(place): step_of(config, device, vocab_size) for place, config in configs.items()},
        repeats=int(parameters["repeats"]),
        device=device,
        warm_up=int(parameters["warm_up"]),
    )
    seconds = [timed[str(place)].seconds for place in places]
    by_depth, by_length = seconds[: len(depths)], seconds[len(depths) :]
    flops = [_flops(configs[place], vocab_size) for place in places[len(depths) :]]
    more = {
        "time_exponent": fitted_exponent(lengths, by_length),
        "flops_exponent": fitted_exponent(lengths, flops),
        "depth_time_exponent": fitted_exponent(depths, by_depth),
        "seconds": by_length[-1],
    }
    metrics = {column: {**its, **more} for column, its in memory["metrics"].items()}
    series = {**memory["series"], "seconds_by_depth": by_depth, "seconds_by_length": by_length}
    return {"metrics": metrics, "series": series}


def _flops(config: Config, vocab_size: int) -> float:
    """Of one training step."""
    return config.data.length * sum(training_flops_by_component(config, vocab_size).values())


def shallowest_memory(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
    """What a replay of `training_memory` compares: the bytes of the shallowest model."""
    return list(_peak(parameters, row_parameters, seed, int(parameters["depths"][0]), int(parameters["at_length"])))


def _peak(
    parameters: Parameters, row_parameters: Parameters, seed: int, depth: int, length: int
) -> tuple[float, float]:
    """(peak activation bytes, replay bytes) of one training step."""
    config = _sized(parameters, row_parameters, seed, depth, length)
    peak, kept = peak_of_step(config, resolve_device(config.device), int(parameters["vocab_size"]))
    return float(peak), float(kept)


def _sized(parameters: Parameters, row_parameters: Parameters, seed: int, depth: int, length: int) -> Config:
    base = [*parameters["overrides"], *row_parameters.get("overrides", [])]
    sizes = [f"n_layers={depth}", f"data.length={length}"]
    if configured(base, seed).stack != "decoder":
        sizes.append(f"n_encoder_layers={depth}")
    return configured([*base, *sizes], seed)


def host_memory(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """Bytes that the device holds at the fullest moment of a training step against depth, and what the host holds.

    `parameters`: overrides, vocab_size, depths; `row_parameters`: overrides of the row. A column with `depth` has
    `megabytes` (10^6 bytes: activations, replay state, and the weights, gradients and optimiser state that are there)
    and `host_megabytes`; every column has `depth_ratio`, the device's at the greatest depth over that at the least.
    """
    depths = [int(number) for number in parameters["depths"]]
    by_depth = [_device_memory(parameters, row_parameters, seed, depth) for depth in depths]
    metrics: dict[str, dict[str, float]] = {}
    for column, where in parameters["columns"].items():
        metrics[column] = {"depth_ratio": by_depth[-1][0] / by_depth[0][0]}
        if "depth" in where:
            on_device, on_host = by_depth[depths.index(int(where["depth"]))]
            metrics[column] |= {"megabytes": on_device, "host_megabytes": on_host}
    series = {"depth": [float(depth) for depth in depths], "megabytes": [on_device for on_device, _ in by_depth]}
    return {"metrics": metrics, "series": series}


def shallowest_host_memory(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
    """What a replay of `host_memory` compares: the megabytes of the shallowest model."""
    return list(_device_memory(parameters, row_parameters, seed, int(parameters["depths"][0])))


def _device_memory(parameters: Parameters, row_parameters: Parameters, seed: int, depth: int) -> tuple[float, float]:
    config = configured([*parameters["overrides"], *row_parameters["overrides"], f"n_layers={depth}"], seed)
    device = resolve_device(config.device)
    on_device, on_host = device_memory_of_step(config, device, int(parameters["vocab_size"]))
    return on_device / 1e6, on_host / 1e6


def training_estimate(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """What `efftx plan` says of one training step, and what is measured of it.

    `parameters`: overrides, warm_up and repeats; `row_parameters`: overrides of the row. Metrics, the same under every
    column: `planned_seconds`, at the rate of the matrix products that a plan measures, here in turns with the step,
    `seconds`, `time_error` (%, positive where the plan is above), `planned_megabytes`, `megabytes` (10^6 bytes of
    activations at their peak) and `memory_error`.
    """
    config = configured([*parameters["overrides"], *row_parameters["overrides"]], seed)
    device, vocab_size = resolve_device(config.device), config.vocab_size
    product, flops = matmul_call(device)
    with threads_of(config.n_threads):
        set_determinism(None)  # as in a training
        timed = interleaved(
            {"step": step_of(config, device, vocab_size), "products": lambda: [product() for _ in range(_PRODUCTS)]},
            repeats=int(parameters["repeats"]),
            device=device,
            warm_up=int(parameters["warm_up"]),
        )
    rate = _PRODUCTS * flops / timed["products"].seconds
    here = replace(default_device(config), flops_per_second={"float32": rate})
    seconds, planned = timed["step"].seconds, Steps.one(config, vocab_size).seconds(here, config.dtype)
    planned_bytes, peak = _estimated_bytes(config)
    metrics = {
        "planned_seconds": planned,
        "seconds": seconds,
        "time_error": 100.0 * (planned / seconds - 1.0),
        "planned_megabytes": planned_bytes / 1e6,
        "megabytes": peak / 1e6,
        "memory_error": 100.0 * (planned_bytes / peak - 1.0),
    }
    series = {"spread": [timed["step"].spread], "flops_per_second": [rate]}
    columns = dict.fromkeys(parameters["columns"], metrics)
    return {"metrics": columns, "series": series, "threads": config.n_threads}


def estimated_bytes(
    parameters: Parameters, row: str, row_parameters: Parameters, result: Mapping[str, Any]
) -> tuple[list[float], list[float]]:
    """What `training_estimate` recorded of bytes, and the same anew."""
    config = configured([*parameters["overrides"], *row_parameters["overrides"]], 0)
    metrics = next(iter(result["metrics"].values()))
    again = [n_bytes / 1e6 for n_bytes in _estimated_bytes(config)]
    return [metrics["planned_megabytes"], metrics["megabytes"]], again


def _estimated_bytes(config: Config) -> tuple[int, int]:
    """(planned, measured) peak activation bytes of a step."""
    vocab_size = config.vocab_size
    return activation_bytes(config, vocab_size), peak_of_step(config, resolve_device(config.device), vocab_size)[0]


MEASURES = {
    "host_memory": Measure(host_memory, shallowest_host_memory),
    "iteration_time": Measure(iteration_time, recount=iteration_counts),
    "training_cost": Measure(training_cost, shallowest_memory),
    "training_estimate": Measure(training_estimate, recount=estimated_bytes),
    "training_memory": Measure(training_memory, shallowest_memory),
}

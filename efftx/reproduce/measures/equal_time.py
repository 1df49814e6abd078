"""What a model learns in a given time, whatever a step of it costs."""

from __future__ import annotations

from typing import Any

from efftx.bench.stacks import step_of
from efftx.machine.devices import resolve_device, set_determinism
from efftx.machine.timing import interleaved
from efftx.reproduce.measures.measure import Measure, Parameters
from efftx.reproduce.measures.trained import configured, replayed_losses
from efftx.training.loop import train


def equal_time(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """A training with as many steps as fit into a time, by what a step takes on this machine; with one at least.

    `parameters`: seconds, what a training may take; warm_up and repeats of the timing that says how many steps that is,
    which ends before the training begins; and overrides; `row_parameters`: further overrides. Metrics, the same under
    every column: those of the finished run on the test split (`bits_per_dim`, `loss`, `accuracy`), `steps`, `tokens`
    that it has seen, `train_seconds` that it did take without evaluations and files, and `overrun`, the share of the
    time by which that is too long. Series: the validation `curve`, bits against seconds.
    """
    words = [*parameters["overrides"], *row_parameters["overrides"]]
    config = configured(words, seed)
    set_determinism(config.n_threads)
    device, budget = resolve_device(config.device), float(parameters["seconds"])
    repeats, warm_up = int(parameters["repeats"]), int(parameters["warm_up"])
    step = step_of(config, device, config.vocab_size)
    timed = interleaved({"step": step}, repeats=repeats, device=device, warm_up=warm_up)["step"]
    steps = max(1, int(budget / timed.seconds))
    result = train(configured([*words, f"training.steps={steps}"], seed))
    seconds = float(result.timings["train_seconds"])
    metrics = {
        **result.metrics,
        "steps": steps,
        "tokens": steps * config.training.batch_size * config.training.accumulation * config.data.length,
        "train_seconds": seconds,
        "overrun": seconds / budget - 1.0,
    }
    points = [(point["step"] * seconds / steps, point["bits_per_dim"]) for point in result.curve]
    series = {"seconds": [at for at, _ in points], "bits": [bits for _, bits in points]}
    return {"metrics": dict.fromkeys(parameters["columns"], metrics), "series": series}


def first_losses(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
    """The losses of the first three steps, which are within the warm-up and so the same at any number of steps."""
    return replayed_losses(configured([*parameters["overrides"], *row_parameters["overrides"]], seed))


MEASURES = {"equal_time": Measure(equal_time, first_losses)}

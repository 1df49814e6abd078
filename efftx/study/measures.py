"""The measures that an experiment of `kind: measure` may name."""

from __future__ import annotations

from efftx.errors import UserError, nearest

# Beside each the module of `reproduce.measures` that has it, which is imported when the measure runs: `efftx list` asks
# for the names alone, and starts without torch.
MODULES = {
    "attention_cost": "attention",
    "attention_maps": "pictures",
    "attention_time": "attention",
    "collision_probability": "lsh",
    "connectivity": "patterns",
    "context_time": "context",
    "drawn_samples": "samples",
    "equal_time": "equal_time",
    "hash_pipeline": "lsh",
    "host_memory": "training",
    "iteration_time": "training",
    "model_size": "parameters",
    "multiplicative_layer": "multiplicative",
    "score_memory": "attention",
    "selected_units": "sparse_ff",
    "token_time": "token_time",
    "training_cost": "training",
    "training_estimate": "training",
    "trained_token_time": "trained_token_time",
    "training_memory": "training",
    "width_time": "token_time",
}


COUNTS = "its counts alone, the seconds are no replay's"
LOSSES = "the first losses of its training"
SMALLEST = "the memory of its smallest model alone"
# What of a record a replay makes anew, where that is not all of it.
_REPLAYED = {
    "attention_cost": COUNTS,
    "attention_maps": LOSSES,
    "attention_time": COUNTS,
    "collision_probability": "three of its angles",
    "context_time": "its first outputs, the seconds are no replay's",
    "drawn_samples": LOSSES,
    "equal_time": LOSSES,
    "host_memory": SMALLEST,
    "iteration_time": COUNTS,
    "selected_units": LOSSES,
    "token_time": COUNTS,
    "training_cost": f"{SMALLEST}, the seconds are no replay's",
    "training_estimate": COUNTS,
    "trained_token_time": LOSSES,
    "training_memory": SMALLEST,
    "width_time": COUNTS,
}


def replayed_part(measure: str) -> str:
    """What a replay of a record of `measure` makes anew, in words; empty where it is everything."""
    return _REPLAYED.get(measure, "")


def check_name(name: str) -> None:
    """UserError with the nearest name where there is no measure called `name`."""
    if name not in MODULES:
        raise UserError("unknown_measure", f"there is no measure '{name}'", nearest(name, MODULES))

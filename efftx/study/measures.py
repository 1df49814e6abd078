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
    "training_memory": "training",
    "width_time": "token_time",
}


def check_name(name: str) -> None:
    """UserError with the nearest name where there is no measure called `name`."""
    if name not in MODULES:
        raise UserError("unknown_measure", f"there is no measure '{name}'", nearest(name, MODULES))

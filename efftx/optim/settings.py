"""The keys of an optimiser, its schedule and the moving average, and what they may be; no torch is needed."""

from dataclasses import dataclass, field

from efftx.errors import UserError, nearest


@dataclass
class OptimizerConfig:
    """Which optimiser, and its constants; `lr` is the schedule's constant.

    `weight_decay` null means the papers' own: 0 for adam, 0.01 for adamw (Sparse Transformers), 1e-5 for adafactor.
    Two keys are adafactor's: the decay falls linearly to 0 over `weight_decay_n_steps` (0: it stays), and the second
    moment forgets by 1 - t^-`decay_exponent` (the authors' 0.8 but for Terraformer's arXiv runs, 0.9).
    """

    name: str = "adam"
    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-9
    weight_decay: float | None = None
    weight_decay_n_steps: int = 0
    decay_exponent: float = 0.8


# The keys that each optimiser reads beside lr; setting another one is a mistake that deserves a message.
OPTIMIZER_KEYS = {
    "adam": frozenset({"betas", "eps"}),
    "adamw": frozenset({"betas", "eps", "weight_decay"}),
    "adafactor": frozenset({"weight_decay", "weight_decay_n_steps", "decay_exponent"}),
}


def check_optimizer(config: OptimizerConfig) -> None:
    """Refuse, with a UserError, an unknown name, a key that the optimiser does not read, and betas that are not two.

    The range of each number is checked in `efftx.config.values`.
    """
    if config.name not in OPTIMIZER_KEYS:
        raise UserError(
            "bad_value", f"optimizer.name={config.name} is not an optimiser.", nearest(config.name, OPTIMIZER_KEYS)
        )
    default = OptimizerConfig()
    for key in ("betas", "eps", "weight_decay", "weight_decay_n_steps", "decay_exponent"):
        value = getattr(config, key)
        if key not in OPTIMIZER_KEYS[config.name] and value != getattr(default, key):
            readers = ", ".join(name for name, keys in OPTIMIZER_KEYS.items() if key in keys)
            raise UserError(
                "unused_key",
                f"optimizer.{key}={value} has no effect: {config.name} does not read it.",
                f"Leave optimizer.{key} at {getattr(default, key)}, or use optimizer.name={readers}.",
            )
    if len(config.betas) != 2:
        raise UserError("bad_value", f"optimizer.betas={list(config.betas)} must be two numbers.")


@dataclass
class ScheduleConfig:
    """The learning rate's course: `warmup` steps of linear rise, then what `name` says.

    `constant` stays; `rsqrt` falls as 1/sqrt(step) (the constant is then not the peak: that is lr/sqrt(warmup)), with
    `floor` only from that step on; `cosine` and `linear` fall to 0 over `steps` steps after the warm-up (0: what the
    training has left).
    """

    name: str = "constant"
    warmup: int = 0
    steps: int = 0
    floor: int = 0


SCHEDULES = ("constant", "rsqrt", "cosine", "linear")


def check_schedule(config: ScheduleConfig, total_steps: int) -> None:
    """Refuse, with a UserError, an unknown name, a key it does not read, and a fall to zero with no step to fall in."""
    if config.name not in SCHEDULES:
        raise UserError("bad_value", f"schedule.name={config.name} is not a schedule.", nearest(config.name, SCHEDULES))
    falls = config.name in ("cosine", "linear")
    if config.steps and not falls:
        raise UserError(
            "unused_key",
            f"schedule.steps={config.steps} has no effect: {config.name} does not read it.",
            "Leave schedule.steps at 0, or use schedule.name=cosine or linear.",
        )
    if config.floor and config.name != "rsqrt":
        raise UserError(
            "unused_key",
            f"schedule.floor={config.floor} has no effect: {config.name} does not read it.",
            "Leave schedule.floor at 0, or use schedule.name=rsqrt.",
        )
    if 0 < config.floor <= config.warmup:
        raise UserError(
            "unused_key",
            f"schedule.floor={config.floor} has no effect: the warm-up ends no earlier, at {config.warmup}.",
            "Leave schedule.floor at 0, or make schedule.warmup less.",
        )
    if falls and not config.steps and not total_steps:
        raise UserError(
            "bad_value",
            f"training.steps=0 trains nothing, and schedule.name={config.name} falls over the steps of the training.",
            "Give a step or more; for the model as it was initialised, add schedule.name=constant schedule.warmup=0.",
        )
    if falls and not config.steps and total_steps <= config.warmup:
        raise UserError(
            "bad_value",
            f"schedule.warmup={config.warmup} leaves no step of training.steps={total_steps} for the {config.name}.",
            "Lower schedule.warmup, raise training.steps, or give schedule.steps.",
        )


@dataclass
class EMAConfig:
    """`decay` of the moving average of the weights that evaluations and samples take; 0 takes the weights themselves.

    The authors' later code has 0.999.
    """

    decay: float = 0.0

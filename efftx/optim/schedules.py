"""Learning rates as pure functions of the step. Steps count from 1, so that the first update already moves."""

import math

from efftx.errors import UserError, nearest
from efftx.optim.settings import SCHEDULES, ScheduleConfig


def learning_rate(config: ScheduleConfig, base_lr: float, step: int, total_steps: int) -> float:
    """The learning rate of the update number `step` (from 1) of a training of `total_steps`.

    * constant: base_lr * min(1, step/warmup).
    * rsqrt: base_lr * min(1, step/warmup) / sqrt(max(step, warmup, floor)), the authors' multifactor. Their rsqrt_decay
      without a linear_warmup is warmup 0 and their warmup_steps as the floor: Terraformer's C4 runs have lr 1 and floor
      10,000, so 0.01 up to there.
    * cosine: base_lr * min(1, step/warmup) * (1 + cos(pi * p)) / 2, where p goes from 0 at the end of the warm-up to 1
      after `steps` more (Sparse Transformers, section 6; there over the whole training). A training longer than a given
      `steps` starts the cosine again, as in the Reformer's enwik8 run of 20,000 steps with cosines of 4,000: the last
      step of each is 0, the next one is near the top.
    * linear: base_lr * min(1, step/warmup) * (1 - p), and 0 from there on.
    """
    if step < 1:
        raise ValueError(f"steps count from 1, got {step}")
    rise = min(1.0, step / config.warmup) if config.warmup else 1.0
    if config.name == "constant":
        return base_lr * rise
    if config.name == "rsqrt":
        return base_lr * rise / math.sqrt(max(step, config.warmup, config.floor))
    after = max(step - config.warmup, 0)
    length = config.steps or max(total_steps - config.warmup, 1)
    if config.name == "linear":
        return base_lr * rise * max(1.0 - after / length, 0.0)
    if config.name == "cosine":
        if config.steps and after:
            after = (after - 1) % length + 1  # 1..length, so that a fall's last step is 0 and not the next one's top
        return base_lr * rise * 0.5 * (1.0 + math.cos(math.pi * min(after / length, 1.0)))
    raise UserError("bad_value", f"schedule.name={config.name} is not a schedule.", nearest(config.name, SCHEDULES))

"""What a training measures of its model: metrics of a split, those of a finished run, the time of a decoded token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from efftx.config.schema import Config
from efftx.core.memory import allocating
from efftx.data.dataset import Dataset, open_dataset
from efftx.data.windows import LanguageModelRows
from efftx.decoding.latency import decoding_latency
from efftx.distributed.processes import Processes
from efftx.distributed.wrap import is_sharded, whole
from efftx.errors import NotFiniteError, UserError
from efftx.evaluation.evaluate import Evaluated, evaluate
from efftx.evaluation.generation import evaluate_generation
from efftx.machine import devices
from efftx.machine.timing import exclusive
from efftx.models.build import Model
from efftx.models.conversion import load_weights
from efftx.runs.ema import evaluated_weights
from efftx.runs.pretrained import final_checkpoint, with_vocabulary_of
from efftx.training.setting import Setting

EVALUATION_SEED = 1_000_003
"""What is drawn while evaluating (hash rotations) comes from this number and the batch's, whatever the run's seed."""
LATENCY_WAITS = 10.0
"""Seconds that a finished training waits for another timing: that of another training takes one."""


def evaluate_split(
    model: Model, setting: Setting, split: str, *, final: bool = False, begun: bool = True
) -> dict[str, float]:
    """Loss and accuracies; of a `final` evaluation also what is measured on generated text, where the data asks.

    A `final` evaluation has the minimum context of `evaluation.min_context`, over the stretch of text that
    `evaluation.batches` would cover without. Of several processes each evaluates its part of the batches, and the
    leader what is generated, alone, with all the weights. `begun`: whether the device has held this work before, so
    that memory it has not got is another's.

    Raises NotFiniteError where one of them is a NaN or an infinity: the weights no longer compute anything.
    """
    config, dataset, device, processes = setting.config, setting.dataset, setting.device, setting.processes
    batches = config.evaluation.batches
    generates = final and bool(getattr(dataset, "metrics", ()))
    if final and (context := config.evaluation.min_context):
        assert isinstance(dataset, LanguageModelRows), "checked with the config"
        covered = batches * config.training.batch_size * config.data.length
        dataset, batches = dataset.with_minimum_context(context, covered or None), 0
    rows = f"evaluating {config.training.batch_size} rows of {dataset.input_length + dataset.length} tokens at a time"
    beam, length_penalty = config.evaluation.beam, config.evaluation.length_penalty
    seed_batch = partial(devices.seed_step, EVALUATION_SEED)
    over = Evaluated(dataset, split, config.training.batch_size, batches, before_batch=seed_batch)

    @contextmanager
    def measuring() -> Iterator[None]:
        less = "a smaller training.batch_size or a smaller data.length"
        with allocating(rows, less, begun=begun), setting.apart():
            yield

    with measuring():
        metrics = evaluate(model, over, device, processes=processes)
    if generates:
        weights = gathered(model, processes)

        def of_generated() -> dict[str, float]:
            with measuring():
                unwrapped = unsharded(model, weights, setting)
                return evaluate_generation(unwrapped, over, device, beam=beam, length_penalty=length_penalty)

        metrics |= processes.led(of_generated)
    if final and config.evaluation.min_context:
        metrics["min_context"] = float(config.evaluation.min_context)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NotFiniteError(
                "not_finite",
                f"The evaluation on the {split} split gave {name} {value}: nothing of it is recorded.",
                "Lower optimizer.lr, set training.clip_norm, or use dtype=float32. Checkpoints stay as they are.",
            )
    return metrics


def evaluate_run(run: Path, config: Config, *, carry: str | None = None, split: str = "test") -> dict[str, float]:
    """Metrics on `split` of the weights that the run at `run` ended with, in the model that `config` describes.

    The two models have the same parameters, or `carry` names how they carry over (`models.conversion`). UserError where
    the run has no checkpoint or the parameters differ, NotFiniteError as `evaluate_split`.
    """
    device = devices.resolve_device(config.device)
    dtype = devices.resolve_dtype(config.dtype, device)
    devices.set_determinism(config.n_threads)
    config = with_vocabulary_of(config, run)
    dataset = open_dataset(config.data, config.objective)
    checkpoint = final_checkpoint(run)
    setting = Setting(config, dataset, device, dtype)
    model = setting.build()
    load_weights(model, evaluated_weights(checkpoint, config.ema.decay), carry)
    return evaluate_split(model, setting, split, final=True, begun=False)


def gathered(model: Model, processes: Processes) -> dict[str, Tensor] | None:
    """All weights of a model that is sharded, in the leader's host memory; every process calls this.

    None of a model that is not sharded; empty in the processes that do not lead.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not any(map(is_sharded, parameters.values())):
        return None
    weights: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensor = whole(parameter)
        if processes.leads:
            weights[name] = tensor.cpu()
    return weights


def unsharded(model: Model, weights: dict[str, Tensor] | None, setting: Setting) -> Model:
    """The model, or where it is sharded one built anew of the `weights` that were `gathered`."""
    if weights is None:
        return model
    rebuilt = setting.build()
    load_weights(rebuilt, weights, None)
    return rebuilt


def latency_of(
    model: Callable[[], Model], dataset: Dataset, device: torch.device, note: Callable[[str], object]
) -> dict[str, float]:
    """What a token costs to decode, on the first row of the test split, in float32 or what the weights are in.

    Empty, and why is noted, where it cannot be measured: another timing holds the machine, the caches do not fit, a
    mechanism has no form for decoding, or anything else goes wrong. A finished training loses nothing over it.
    """
    try:
        batch = dataset.batch("test", 0, 0, 1).to(device)
        with allocating("decoding a row", "a smaller data.length or a smaller d_model"), exclusive(LATENCY_WAITS):
            return decoding_latency(model(), batch.tokens_BL[0], batch.inputs_BE)
    except Exception as error:
        why = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        note(f"decoding was not timed: {why}")
        return {}

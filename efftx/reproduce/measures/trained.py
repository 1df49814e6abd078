"""Configurations and trained models that measures look into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from efftx.config.compose import compose
from efftx.config.schema import Config
from efftx.core.scratch import scratch_folder
from efftx.data.dataset import Dataset, open_dataset
from efftx.models.build import Model, build_model
from efftx.models.conversion import load_weights
from efftx.reproduce.measures.measure import Parameters
from efftx.reproduce.trainer import SCRATCH
from efftx.runs.ema import evaluated_weights
from efftx.runs.pretrained import final_checkpoint
from efftx.training.loop import N_FIRST_LOSSES, train


def configured(overrides: Sequence[str], seed: int) -> Config:
    """The configuration of these overrides at a seed."""
    return replace(compose(list(overrides)), seed=seed)


class Trained(NamedTuple):
    """A model on the CPU, in eval mode, with the weights its training ends with; its data, and its metrics on test."""

    model: Model
    dataset: Dataset
    metrics: dict[str, float]


def trained_model(config: Config) -> Trained:
    """The model of `config`, trained; a finished run is taken as it is.

    UserError where its checkpoint is missing or damaged.
    """
    result = train(config)
    dataset = open_dataset(config.data, config.objective)
    model = build_model(config, dataset.vocab_size, torch.device("cpu")).eval()
    load_weights(model, evaluated_weights(final_checkpoint(result.run), config.ema.decay), None)
    return Trained(model, dataset, result.metrics)


def first_losses(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
    """What a replay of a measure compares that looks into one model, that of `parameters["overrides"]`, in every row.

    `attention_maps` and `selected_units` do.
    """
    return replayed_losses(configured(parameters["overrides"], seed))


def replayed_losses(config: Config) -> list[float]:
    """The losses of the first three steps of a training, of which nothing is kept."""
    with scratch_folder(SCRATCH) as folder:
        return train(config, folder / "run", steps=N_FIRST_LOSSES).first_losses

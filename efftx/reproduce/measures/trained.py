"""Configurations and trained models that measures look into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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


def trained_model(config: Config) -> tuple[Model, Dataset]:
    """The model of `config` in eval mode, with the weights its training ends with, on the CPU; and its data set.

    A finished run is taken as it is. UserError where its checkpoint is missing or damaged.
    """
    run = train(config).run
    dataset = open_dataset(config.data, config.objective)
    model = build_model(config, dataset.vocab_size, torch.device("cpu")).eval()
    load_weights(model, evaluated_weights(final_checkpoint(run), config.ema.decay), None)
    return model, dataset


def first_losses(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
    """What a replay of a measure compares that looks into one model, that of `parameters["overrides"]`, in every row.

    `attention_maps` and `selected_units` do.
    """
    return replayed_losses(configured(parameters["overrides"], seed))


def replayed_losses(config: Config) -> list[float]:
    """The losses of the first three steps of a training, of which nothing is kept."""
    with scratch_folder(SCRATCH) as folder:
        return train(config, folder / "run", steps=N_FIRST_LOSSES).first_losses

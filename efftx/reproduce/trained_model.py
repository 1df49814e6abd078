"""The model that a measure looks into: trained where it has not been yet, and its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from efftx.config.schema import Config
    from efftx.data.dataset import Dataset
    from efftx.models.build import Model


def trained_model(config: Config) -> tuple[Model, Dataset]:
    """The model of `config` in eval mode, with the weights its training ends with, on the CPU; and its data set.

    A finished run is taken as it is. UserError where its checkpoint is missing or damaged.
    """
    import torch

    from efftx.data.dataset import open_dataset
    from efftx.models.build import build_model
    from efftx.models.carry import carry_weights
    from efftx.runs.ema import evaluated_weights
    from efftx.runs.pretrained import final_checkpoint
    from efftx.training.loop import train

    run = train(config).run
    dataset = open_dataset(config.data, config.objective)
    model = build_model(config, dataset.vocab_size, torch.device("cpu")).eval()
    carry_weights(model, evaluated_weights(final_checkpoint(run), config.ema.decay), None)
    return model, dataset

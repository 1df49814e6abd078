"""The trivial answers of an experiment's gates, computed on the data of a training's config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from efftx.config.hash import hashed_values
from efftx.config.schema import Config
from efftx.data.dataset import open_dataset
from efftx.data.glue import GlueConfig, fields_of
from efftx.data.tokenizer import TextConfig
from efftx.evaluation.trivial import Question, trivial_answer
from efftx.reproduce.trainer import Trivial

ON_TOKENS = ("ngram", "compressed")
"""Kinds that answer in the tokens that the models have; all others read the text itself."""


def answer(config: Config, asked: Mapping[str, Any]) -> Trivial:
    """What the trivial answer `asked` for gives on the data of `config`, on the test rows that its evaluation reads.

    UserError for data that is missing or of another kind.
    """
    config = _read_by(config, asked)
    dataset = open_dataset(config.data, config.objective)
    task = config.data.task if isinstance(config.data, GlueConfig) else ""
    question = Question(
        **asked,
        rows=_n_rows(config) or None,
        fields=(lambda source: fields_of(task, source)) if task else None,
    )
    metrics = dict(sorted(trivial_answer(dataset, question).items()))
    return Trivial(metrics, {"name": dataset.name, "variant": dataset.variant, "checksum": dataset.checksum})


def trivial_hash(config: Config, asked: Mapping[str, Any], data: Mapping[str, str]) -> str:
    """SHA-256 (hex) over what is asked, the data, and how it is cut and evaluated; nothing of a model is in it."""
    values = hashed_values(replace(_read_by(config, asked), device="cpu"), "")  # device=auto would import torch
    cut = {key: value for key, value in values.items() if key.startswith("data.") or key == "objective"}
    words = [dict(asked), cut, _n_rows(config), dict(data)]
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


def _read_by(config: Config, asked: Mapping[str, Any]) -> Config:
    """The config under which the data is read: no vocabulary loses or changes a word of a text that is read itself."""
    if asked["kind"] in ON_TOKENS or not isinstance(config.data, TextConfig):
        return config
    return replace(config, data=replace(config.data, tokenizer="bytes", tokenizer_path=None))


def _n_rows(config: Config) -> int:
    """Rows of the test split that are evaluated, 0 for all."""
    return config.evaluation.batches * config.training.batch_size

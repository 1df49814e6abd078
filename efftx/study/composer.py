"""Today's configurations and their hashes, which tell whether a record is one of today's; nothing is built for them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from efftx.config.compose import compose
from efftx.config.compositions import composed
from efftx.config.hash import config_hash, hashed_values
from efftx.config.schema import Config
from efftx.core.shipped import shipped
from efftx.data import dataset
from efftx.data.tokenizer import TextConfig

ON_TOKENS = ("ngram", "compressed")
"""Trivial answers in the tokens that the models have; all others read the text itself."""


class Composer:
    """Composes through Hydra; what is composed is kept, since a seed changes one number of it."""

    def __init__(self) -> None:
        self._composed: dict[tuple[str, ...], Any] = {}
        self._sources = ""

    def compose(self, overrides: Sequence[str], seed: int) -> Any:
        """The resolved config of these overrides at `seed`; UserError where they do not compose."""
        key = tuple(overrides)
        if key not in self._composed:
            self._composed[key] = composed(key, compose)
        return replace(self._composed[key], seed=seed)

    def hash(
        self,
        config: Any,
        data: Mapping[str, str],
        made_on: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
    ) -> str:
        """The hash of `config` on a data set of this name, variant and checksum, begun from the run of that hash.

        What the config leaves to the machine (device, threads) is as in the environment `made_on`, where it is given.
        """
        if made_on is not None and config.device == "auto":
            config = replace(config, device="cuda" if made_on.get("gpu") else "cpu")
        if made_on is not None and config.threads is None:
            config = replace(config, threads=made_on.get("threads"))
        # No data set is opened to compare a record with today's configuration.
        return config_hash(config, cast(Any, SimpleNamespace(**data)), pretrained)

    def values(self, config: Any) -> dict[str, Any]:
        """All of `config` that can change a result; what it leaves to the machine is as on a CPU with one thread."""
        return hashed_values(replace(config, device="cpu", threads=config.threads or 1), "")

    def sources(self) -> str:
        """A digest of all that composing reads beside the overrides: conf/, and the schema with its defaults."""
        if not self._sources:
            digest = hashlib.sha256()
            conf = shipped("conf")
            for path in sorted(conf.rglob("*.yaml")):
                digest.update(f"{path.relative_to(conf)}\n".encode() + path.read_bytes())
            for schema in (Config, *(dataset.find_source(name).config for name in dataset.names())):
                digest.update(repr(_schema(schema)).encode())
            self._sources = digest.hexdigest()
        return self._sources

    def trivial_hash(self, config: Any, asked: Mapping[str, Any], data: Mapping[str, str]) -> str:
        """The hash of all that can change a trivial answer (`Gate.asked`) on the data of `config`, not of models."""
        values = hashed_values(replace(read_by(config, asked), device="cpu"), "")  # device=auto would import torch
        cut = {key: value for key, value in values.items() if key.startswith("data.") or key == "objective"}
        words = [dict(asked), cut, n_test_rows(config), dict(data)]
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


def read_by(config: Config, asked: Mapping[str, Any]) -> Config:
    """The config under which a trivial answer reads: no vocabulary loses or changes a word of a text read itself."""
    if asked["kind"] in ON_TOKENS or not isinstance(config.data, TextConfig):
        return config
    return replace(config, data=replace(config.data, tokenizer="bytes", tokenizer_path=None))


def n_test_rows(config: Config) -> int:
    """Rows of the test split that are evaluated, 0 for all."""
    return config.evaluation.batches * config.training.batch_size


def _schema(schema: Any) -> list[tuple[str, str, Any]]:
    """Name, type and default of every field; the defaults of nested nodes show in their own representation."""
    return [
        (f.name, str(f.type), f.default if f.default_factory is dataclasses.MISSING else f.default_factory())
        for f in dataclasses.fields(schema)
    ]

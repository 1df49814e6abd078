"""What identifies a run: the hash of all that can change its result, and of nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cache
from typing import Any

from efftx.config.checks import dead_reason
from efftx.config.schema import Config, to_dict
from efftx.core.device_names import read_device
from efftx.data.dataset import Dataset

OUTSIDE = (
    "model",
    "size",
    "run_dir",
    "checkpoint",
    "tracker",
    "distributed",
    *(f"data.{key}" for key in ("path", "tokenizer_path", "n_documents", "n_bytes", "extra")),
)
"""Labels, places and habits of saving, which change no result; and what of the data its checksum covers."""


def config_hash(config: Config, dataset: Dataset, pretrained: str | None = None) -> str:
    """SHA-256 (hex) over all that can change a result, and nothing else.

    In: architecture, mechanisms, training, optimiser, evaluation, seed, dtype, threads, kind of device, and the data's
    variant and checksum. Out: what `OUTSIDE` lists, the keys that no active mechanism reads, and every value that is
    the schema's default. So a mechanism that is added later, off by default, leaves the hashes of all earlier runs as
    they are; in return a default that was ever released keeps its value (a test holds them).

    Of the run that `config` starts from the hash is in, `pretrained`, and its directory is not. ValueError where it is
    wanted and not given.
    """
    values = hashed_values(config, pretrained)
    values |= {"data.variant": dataset.variant, "data.checksum": dataset.checksum}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def hashed_values(config: Config, pretrained: str | None = None) -> dict[str, Any]:
    """The keys of `config`, dotted, that enter its hash, with threads and device as they are on this machine."""
    if config.pretrained is not None and pretrained is None:
        raise ValueError("the hash of the run that this one starts from is wanted")
    defaults = default_values(type(config.data))
    here = {"threads": config.n_threads, "device": device_kind(config.device), "pretrained": pretrained}
    values = _flat({**to_dict(config), **here})
    return {
        key: value
        for key, value in values.items()
        if not _is_outside(key) and (key not in defaults or defaults[key] != value) and dead_reason(config, key) is None
    }


def default_values(data_config: type) -> dict[str, Any]:
    """Every key that may enter a hash and has a default, dotted, with that; the data node's are of `data_config`."""
    values = _defaults(Config) | {f"data.{key}": value for key, value in _defaults(data_config).items()}
    return {key: value for key, value in values.items() if not _is_outside(key)}


@cache
def _is_outside(key: str) -> bool:
    return any(key == name or key.startswith(name + ".") for name in OUTSIDE)


def device_kind(device: str) -> str:
    """`cpu` or `cuda`: what `auto` means on this machine."""
    kind, _ = read_device(device)
    if kind != "auto":
        return kind
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _defaults(schema: type) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in dataclasses.fields(schema):
        if item.default_factory is not dataclasses.MISSING:
            value = item.default_factory()
        elif item.default is not dataclasses.MISSING and item.default != "???":
            value = item.default
        else:
            continue
        values |= (
            {f"{item.name}.{key}": v for key, v in _defaults(type(value)).items()}
            if dataclasses.is_dataclass(value)
            else {item.name: value}
        )
    return values

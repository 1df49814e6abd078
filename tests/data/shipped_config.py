"""A data set's shipped file as its typed configuration, at the paper's size."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from efftx.config.compose import register_schema
from efftx.data.dataset import DataConfig, find_source


def shipped_config(name: str) -> DataConfig:
    """conf/data/<name>.yaml merged into the data set's own dataclass, with the values of size paper."""
    register_schema()
    loaded = OmegaConf.load(Path(__file__).parents[2] / "conf" / "data" / f"{name}.yaml")
    assert isinstance(loaded, DictConfig)
    loaded.pop("defaults", None)
    data = OmegaConf.merge(OmegaConf.structured(find_source(name).config), loaded)
    config = OmegaConf.to_object(OmegaConf.create({"size": "paper", "data": data}))["data"]
    assert isinstance(config, DataConfig)
    return config

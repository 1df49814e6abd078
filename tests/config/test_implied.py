"""What overrides imply without saying it."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from efftx.config.compose import compose
from efftx.core.shipped import shipped
from efftx.data.dataset import find_source, names

SENTENCES = [name for name in names() if find_source(name).own_length]


def test_translations_are_sentences() -> None:
    assert {"grammar", "wmt14"} <= set(SENTENCES)


@pytest.mark.parametrize("name", SENTENCES)
@pytest.mark.parametrize("size", ["paper", "gpu", "cpu"])
@pytest.mark.parametrize("model", ["transformer", "scaling"])
def test_a_models_preset_does_not_lengthen_sentences(model: str, size: str, name: str) -> None:
    words = [f"model={model}", "stack=encoder_decoder", f"data={name}", f"size={size}"]
    length = OmegaConf.load(shipped("conf") / "data" / f"{name}.yaml").length
    data = compose(words).data
    assert data.length == data.target_length == find_source(name).own_length == length
    data = compose([*words, "data.length=160", "data.target_length=150"]).data
    assert (data.length, data.target_length) == (160, 150)


@pytest.mark.parametrize(("name", "length"), [("grammar", 24), ("wmt14", 64)])
def test_a_preset_of_size_smoke_may_shorten_them(name: str, length: int) -> None:
    data = compose(["model=transformer", "stack=encoder_decoder", f"data={name}", "size=smoke"]).data
    assert (data.length, data.target_length) == (length, length)


def test_a_preset_that_is_named_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "short.yaml").write_text("# @package _global_\ndata: {length: 48}\n")
    words = ["model=scaling", "stack=encoder_decoder", "data=wmt14", "size=cpu", "preset=short"]
    assert compose(words, config_dirs=[tmp_path]).data.length == 48

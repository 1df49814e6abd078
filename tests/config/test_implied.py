"""What overrides imply without saying it."""

from __future__ import annotations

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
    assert compose(words).data.length == find_source(name).own_length == length
    assert compose([*words, "data.length=160"]).data.length == 160


@pytest.mark.parametrize("name", SENTENCES)
def test_a_preset_of_size_smoke_may_shorten_them(name: str) -> None:
    config = compose(["model=transformer", "stack=encoder_decoder", f"data={name}", "size=smoke"])
    assert config.data.length <= 64

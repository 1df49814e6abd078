"""Small configurations of every family, composed once each."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from efftx.config.compose import compose
from efftx.config.schema import Config
from efftx.models.build import build_model
from efftx.models.decoder import Decoder

VOCABULARY = 23
BASE = ("data=duplicate", "size=smoke", "data.length=64", "dropout=0")


@functools.cache
def composed(overrides: tuple[str, ...]) -> Config:
    return compose(overrides)


@pytest.fixture(scope="session")
def configure() -> Callable[..., Config]:
    """`configure("model=reformer", ...)`: the smoke size, rows of 64 tokens and no dropout unless told otherwise."""

    def configure(*overrides: str, size: str = "smoke") -> Config:
        base = [word if word != "size=smoke" else f"size={size}" for word in BASE]
        keys = {word.split("=")[0] for word in overrides}
        kept = [word for word in base if word.split("=")[0] not in keys]
        return copy.deepcopy(composed((*kept, *overrides)))

    return configure


@pytest.fixture(scope="session")
def build(configure: Callable[..., Config]) -> Callable[..., Decoder]:
    """`build("model=reformer", ...)`: the model of that configuration, in float64 on the CPU."""

    def build(*overrides: str, vocab_size: int = VOCABULARY, dtype: torch.dtype = torch.float64) -> Decoder:
        return build_model(configure(*overrides), vocab_size, torch.device("cpu"), dtype)

    return build


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    """`tokens(length)`: two rows of random tokens, the same at every call."""

    def tokens(length: int = 64, vocab_size: int = VOCABULARY, shape: Sequence[int] = (2,)) -> Tensor:
        generator = torch.Generator().manual_seed(11)
        return torch.randint(0, vocab_size, (*shape, length), generator=generator)

    return tokens

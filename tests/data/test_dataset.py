from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftx.data.c4 import C4Config
from efftx.data.dataset import DataConfig, draw, find_source, names, open_dataset
from efftx.data.duplicate import DuplicateConfig
from efftx.data.enwik8 import Enwik8Config
from efftx.data.span_corruption import SpanCorruptionConfig
from efftx.errors import UserError
from tests.data.shipped_config import shipped_config


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError) as raised:
        open_dataset(DataConfig("enwiki8", 16))
    assert raised.value.kind == "unknown_data"
    assert "'enwik8'" in raised.value.hint


def test_every_registered_name_is_the_name_of_its_source() -> None:
    assert [find_source(name).name for name in names()] == names()


PAPERS = [
    C4Config("c4", 512, target_length=256, tokenizer="t5", vocab_size=32000, noise=0.15, mean_span=3.0),
    DuplicateConfig("duplicate", 1024, n_symbols=127),
    Enwik8Config("enwik8", 65536),
    SpanCorruptionConfig("stdlib", 1024),
]


@pytest.mark.parametrize("expected", PAPERS, ids=lambda config: config.name)
def test_the_shipped_config_fits_the_typed_one_and_has_the_papers_values(expected: DataConfig) -> None:
    assert shipped_config(expected.name) == expected


@pytest.mark.parametrize("name", names())
def test_every_data_set_has_a_shipped_config_of_its_own_type(name: str) -> None:
    config = shipped_config(name)
    assert isinstance(config, find_source(name).config)
    assert config.name == name


def test_a_length_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.length=0"):
        open_dataset(DataConfig("stdlib", 0))


@given(st.integers(1, 10**9), st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**40), st.integers(0, 2**40))
def test_fewer_draws_are_the_first_of_more(below: int, few: int, more: int, seed: int, step: int) -> None:
    drawn = draw("name", "train", seed, step, few + more, below)
    assert np.array_equal(draw("name", "train", seed, step, few, below), drawn[:few])
    assert ((drawn >= 0) & (drawn < below)).all()


def test_draws_are_the_same_in_every_process_and_version() -> None:
    assert draw("x", "train", 1, 2, 4, 1000).tolist() == [739, 739, 193, 785]


def test_seed_and_step_do_not_run_into_each_other() -> None:
    assert not np.array_equal(draw("x", "train", 1, 12, 8, 10**6), draw("x", "train", 11, 2, 8, 10**6))


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match="'validation'"):
        draw("x", "validation", 0, 0, 1, 2)


def test_an_objective_that_a_data_set_does_not_offer_is_refused_with_those_it_does() -> None:
    with pytest.raises(UserError, match="data=duplicate does not offer objective=span_corruption") as raised:
        open_dataset(DataConfig("duplicate", 16), "span_corruption")
    assert raised.value.hint == "It offers lm. A decoder takes that: stack=decoder, or model=transformer."

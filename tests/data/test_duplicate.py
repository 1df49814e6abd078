from __future__ import annotations

import numpy as np
import pytest
import torch

from efftx.data.dataset import Dataset, open_dataset
from efftx.data.duplicate import Duplicate, DuplicateConfig
from efftx.errors import UserError


@pytest.fixture
def paper() -> Dataset:
    return open_dataset(DuplicateConfig("duplicate", 1024))


def test_the_papers_row_is_0_w_0_w_with_127_symbols(paper: Dataset) -> None:
    batch = paper.batch("train", 0, 0, 16)
    assert batch.tokens_BL.shape == batch.weights_BL.shape == (16, 1024)
    assert batch.tokens_BL.dtype == torch.int64
    assert batch.weights_BL.dtype == torch.float32
    assert (batch.tokens_BL[:, [0, 512]] == 0).all()
    w = batch.tokens_BL[:, 1:512]
    assert torch.equal(w, batch.tokens_BL[:, 513:])
    assert sorted(w.unique().tolist()) == list(range(1, 128))
    assert paper.vocab_size == 128


def test_only_the_second_w_counts(paper: Dataset) -> None:
    weights_BL = paper.batch("valid", 0, 0, 2).weights_BL
    assert (weights_BL[:, :513] == 0).all()
    assert (weights_BL[:, 513:] == 1).all()


def test_symbols_are_uniform(paper: Dataset) -> None:
    w = paper.batch("train", 3, 1, 256).tokens_BL[:, 1:512]
    counts = torch.bincount(w.flatten(), minlength=128)[1:].double()
    chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_squared < 126 + 6 * (2 * 126) ** 0.5  # six standard deviations above the mean of 126 degrees of freedom


def test_a_batch_is_a_function_of_its_arguments_alone(paper: Dataset) -> None:
    again = open_dataset(DuplicateConfig("duplicate", 1024))
    assert torch.equal(paper.batch("train", 1, 2, 4).tokens_BL, again.batch("train", 1, 2, 4).tokens_BL)


def test_a_row_does_not_depend_on_the_batch_size(paper: Dataset) -> None:
    assert torch.equal(paper.batch("train", 1, 2, 3).tokens_BL, paper.batch("train", 1, 2, 8).tokens_BL[:3])


def test_seeds_steps_and_splits_draw_different_words(paper: Dataset) -> None:
    batches = [paper.batch(split, 0, step, 8) for split in ("train", "valid", "test") for step in (0, 1)]
    batches += [paper.batch("train", 1, 0, 8), paper.batch("train", 10, 0, 8), paper.batch("train", 1, 1, 8)]
    rows = {tuple(row.tolist()) for batch in batches for row in batch.tokens_BL}
    assert len(rows) == 8 * len(batches)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_every_seed_is_evaluated_on_the_same_data(paper: Dataset, split: str) -> None:
    assert torch.equal(paper.batch(split, 0, 5, 4).tokens_BL, paper.batch(split, 7, 5, 4).tokens_BL)


def test_the_stream_is_the_one_of_the_committed_records() -> None:
    dataset = open_dataset(DuplicateConfig("duplicate", 12, n_symbols=9))
    assert dataset.batch("train", 1, 2, 1).tokens_BL.tolist() == [[0, 6, 4, 2, 3, 1, 0, 6, 4, 2, 3, 1]]


def test_chance_is_0_8_percent_in_the_paper(paper: Dataset) -> None:
    assert paper.chance_accuracy == pytest.approx(100 / 127)


def test_the_checksum_tells_one_generator_from_another(paper: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(paper.checksum) == 64
    assert paper.checksum == Duplicate(1024, 127).checksum
    assert paper.checksum != Duplicate(1024, 126).checksum
    assert paper.checksum != Duplicate(1022, 127).checksum
    before = paper.checksum
    monkeypatch.setattr("efftx.data.duplicate.draw", lambda *drawn: np.zeros(drawn[4], dtype=np.int64))
    assert paper.checksum != before


def test_it_never_ends(paper: Dataset) -> None:
    assert paper.n_batches("test", 8) is None


def test_the_shortest_row_has_one_symbol() -> None:
    batch = Duplicate(4, 2).batch("train", 0, 0, 5)
    assert torch.equal(batch.tokens_BL[:, 1], batch.tokens_BL[:, 3])
    assert batch.weights_BL.tolist() == [[0, 0, 0, 1]] * 5


@pytest.mark.parametrize(("length", "n_symbols"), [(7, 127), (2, 127), (0, 127), (8, 1)])
def test_an_impossible_task_is_refused(length: int, n_symbols: int) -> None:
    with pytest.raises(UserError) as raised:
        open_dataset(DuplicateConfig("duplicate", length, n_symbols=n_symbols))
    assert raised.value.kind == "bad_value"


def test_a_path_that_nobody_would_read_is_refused() -> None:
    with pytest.raises(UserError, match="reads no file"):
        open_dataset(DuplicateConfig("duplicate", 8, path="words.txt"))

"""Copying and adding numbers: every question has its answer, and evaluation is longer than training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efftx.data.copy_add import CopyAdd, CopyAddConfig
from efftx.data.dataset import Batch, Dataset, find_source, open_dataset
from efftx.errors import UserError

END = 1


def paper(task: str) -> CopyAdd:
    return CopyAdd(CopyAddConfig("copy_add", 301, task=task))


def small(task: str, base: int = 10, low: int = 2, high: int = 7) -> CopyAdd:
    """Trained and evaluated on `low` to `high` digits."""
    return CopyAdd(CopyAddConfig("copy_add", high + 1, None, 0, task, base, low, high, low, high))


def tokens(row: torch.Tensor) -> list[int]:
    """A row without its padding, which is at the end only."""
    values: list[int] = row.tolist()
    n = sum(value != 0 for value in values)
    assert not any(values[n:])
    return values[:n]


def number(digit_tokens: list[int], base: int) -> int:
    """The number that digit tokens say, least significant first."""
    assert all(2 <= token < 2 + base for token in digit_tokens)
    return sum((token - 2) * base**i for i, token in enumerate(digit_tokens))


def examples(batch: Batch) -> list[tuple[list[int], list[int]]]:
    assert batch.inputs_BE is not None
    return [(tokens(x), tokens(y)) for x, y in zip(batch.inputs_BE, batch.tokens_BL, strict=True)]


@settings(max_examples=40)
@given(base=st.integers(2, 10), low=st.integers(2, 9), more=st.integers(0, 8), step=st.integers(0, 10**6))
def test_the_answer_to_a_sum_is_the_sum(base: int, low: int, more: int, step: int) -> None:
    dataset = small("add", base, low, low + more)
    plus = 2 + base
    for split in ("train", "valid", "test"):
        for question, answer in examples(dataset.batch(split, 0, step, 8)):
            first, second = question[: question.index(plus)], question[question.index(plus) + 1 :]
            assert low <= len(first) + len(second) <= low + more
            for digits in (first, second):
                assert digits
                assert digits[-1] != 2 or len(digits) == 1
            assert answer[-1] == END
            total = number(first, base) + number(second, base)
            assert number(answer[:-1], base) == total
            assert len(answer) - 1 == len(np.base_repr(total, base))


@settings(max_examples=30)
@given(base=st.integers(2, 10), low=st.integers(1, 9), more=st.integers(0, 8), step=st.integers(0, 10**6))
def test_the_answer_to_a_copy_is_the_question(base: int, low: int, more: int, step: int) -> None:
    for question, answer in examples(small("copy", base, low, low + more).batch("train", 0, step, 8)):
        assert answer == [*question, END]
        assert low <= len(question) <= low + more
        assert all(2 <= token < 2 + base for token in question)


@pytest.mark.parametrize("task", ["copy", "add"])
def test_only_the_answer_and_its_end_count(task: str) -> None:
    for split in ("train", "test"):
        batch = paper(task).batch(split, 0, 0, 16)
        assert batch.inputs_BE is not None
        assert torch.equal(batch.weights_BL, (batch.tokens_BL != 0).float())
        assert bool(((batch.tokens_BL == END).sum(1) == 1).all())
        assert batch.tokens_BL.dtype == batch.inputs_BE.dtype == torch.int64


@pytest.mark.parametrize(("task", "plus"), [("copy", 0), ("add", 1)])
def test_the_papers_lengths_are_3_to_129_in_training_and_257_to_301_in_evaluation(task: str, plus: int) -> None:
    dataset = paper(task)
    assert dataset.vocab_size == 13
    for split, low, high, widths in (
        ("train", 2, 128, (128 + plus, 129)),
        ("valid", 256, 300, (301, 301)),
        ("test", 256, 300, (301, 301)),
    ):
        batch = dataset.batch(split, 0, 0, 512)
        assert batch.inputs_BE is not None
        assert (batch.inputs_BE.shape[1], batch.tokens_BL.shape[1]) == widths
        lengths = (batch.inputs_BE != 0).sum(1) - plus
        assert (int(lengths.min()), int(lengths.max())) == (low, high)
    assert (dataset.input_length, dataset.length) == (301, 301)


@pytest.mark.parametrize("task", ["copy", "add"])
def test_the_tokens_of_a_batch_are_those_of_the_vocabulary(task: str) -> None:
    batch = paper(task).batch("valid", 0, 0, 32)
    assert batch.inputs_BE is not None
    assert batch.inputs_BE.unique().tolist() == sorted({0, *range(2, 12), *([12] if task == "add" else [])})
    assert batch.tokens_BL.unique().tolist() == list(range(12))


def test_digits_of_a_copy_and_numbers_of_digits_are_uniform() -> None:
    batch = paper("copy").batch("train", 3, 1, 4000)
    assert batch.inputs_BE is not None
    lengths = (batch.inputs_BE != 0).sum(1)
    for values, n_values, least in ((batch.inputs_BE[batch.inputs_BE != 0], 10, 2), (lengths, 127, 2)):
        counts = torch.bincount(values - least, minlength=n_values).double()
        chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        degrees = n_values - 1
        assert chi_squared < degrees + 6 * (2 * degrees) ** 0.5  # six standard deviations


def test_a_number_of_one_digit_may_be_zero() -> None:
    questions = [question for question, _ in examples(small("add", low=2, high=2).batch("train", 0, 0, 300))]
    assert {first for first, _, _ in questions} == {last for _, _, last in questions} == set(range(2, 12))


def test_the_plus_falls_anywhere_between_the_digits() -> None:
    batch = small("add", low=6, high=6).batch("train", 0, 0, 2000)
    assert batch.inputs_BE is not None
    places = torch.bincount((batch.inputs_BE == 12).int().argmax(1), minlength=7)
    assert places[[0, 6]].tolist() == [0, 0]
    assert bool(((places[1:6] - 400).abs() < 100).all())


@pytest.mark.parametrize("task", ["copy", "add"])
def test_a_batch_is_a_function_of_its_arguments_alone(task: str) -> None:
    first, again = paper(task).batch("train", 1, 2, 4), paper(task).batch("train", 1, 2, 4)
    assert examples(first) == examples(again)


@pytest.mark.parametrize("task", ["copy", "add"])
def test_a_row_does_not_depend_on_the_batch_size(task: str) -> None:
    assert examples(paper(task).batch("train", 1, 2, 3)) == examples(paper(task).batch("train", 1, 2, 8))[:3]


def test_seeds_steps_and_splits_draw_different_questions() -> None:
    dataset = small("add", low=30, high=40)
    batches = [dataset.batch(split, 0, step, 8) for split in ("train", "valid", "test") for step in (0, 1)]
    batches += [dataset.batch("train", 1, 0, 8), dataset.batch("train", 10, 0, 8), dataset.batch("train", 1, 1, 8)]
    assert len({tuple(question) for batch in batches for question, _ in examples(batch)}) == 8 * len(batches)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_every_seed_and_every_training_is_evaluated_on_the_same_questions(split: str) -> None:
    dataset = paper("add")
    shorter = CopyAdd(replace(dataset.config, max_digits=20))
    batches = [dataset.batch(split, 0, 5, 4), dataset.batch(split, 7, 5, 4), shorter.batch(split, 0, 5, 4)]
    assert examples(batches[0]) == examples(batches[1]) == examples(batches[2])


def test_longer_rows_are_padded_and_nothing_else() -> None:
    exact = paper("add")
    longer = CopyAdd(replace(exact.config, length=384, target_length=320))
    batch = longer.batch("test", 0, 0, 4)
    assert batch.inputs_BE is not None
    assert (longer.input_length, longer.length) == (batch.inputs_BE.shape[1], batch.tokens_BL.shape[1]) == (384, 320)
    assert examples(batch) == examples(exact.batch("test", 0, 0, 4))


def test_chance_is_one_digit_in_the_base() -> None:
    assert paper("copy").chance_accuracy == 10.0
    assert small("add", base=4).chance_accuracy == 25.0
    batch = paper("add").batch("test", 0, 0, 256)
    guessed = (batch.tokens_BL == 2 + 7).double()[batch.weights_BL > 0]
    assert abs(100 * float(guessed.mean()) - 10.0) < 0.5


def test_the_stream_is_the_one_of_the_committed_records() -> None:
    ((question, answer),) = examples(small("add").batch("train", 1, 2, 1))
    assert (question, answer) == ([5, 5, 12, 2, 9], [5, 2, 3, 1])


def test_the_checksum_tells_one_generator_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [data.checksum for data in (paper("copy"), paper("add"), small("add"), small("add", base=9))]
    assert len(set(before)) == 4
    assert paper("copy").checksum == before[0]
    assert len(before[0]) == 64
    monkeypatch.setattr("efftx.data.copy_add.draw", lambda *drawn: np.zeros(drawn[4], dtype=np.int64))
    assert paper("copy").checksum != before[0]


def test_the_variant_says_what_the_numbers_are() -> None:
    assert paper("add").variant == "copy_add[add,base=10,digits=2-128,evaluation=256-300]"


def staged(task: str = "add", steps: int = 3) -> CopyAdd:
    """A curriculum of 2, then 4, then 2 to 6 digits; `small(task, high=6)` is its last stage alone."""
    return CopyAdd(replace(small(task, high=6).config, stages=[2, 4], stage_steps=steps))


@pytest.mark.parametrize("task", ["copy", "add"])
def test_a_curriculum_trains_on_the_digits_of_its_stage(task: str) -> None:
    for step, most in enumerate([2, 2, 2, 4, 4, 4, 6, 6, 6, 6]):
        batch = staged(task).batch("train", 0, step, 256)
        alone = small(task, high=most).batch("train", 0, step, 256)
        assert examples(batch) == examples(alone)
        assert batch.tokens_BL.shape == alone.tokens_BL.shape  # short questions are not padded for the long ones
        assert max(sum(2 <= token < 12 for token in question) for question, _ in examples(batch)) == most


def test_a_curriculum_leaves_evaluation_and_an_ordinary_training_as_they_are() -> None:
    for split in ("valid", "test"):
        assert examples(staged().batch(split, 0, 0, 8)) == examples(small("add", high=6).batch(split, 0, 0, 8))
    assert staged(steps=3).checksum != staged(steps=4).checksum != small("add", high=6).checksum


def test_the_variant_names_the_stages_of_a_curriculum() -> None:
    assert staged().variant == "copy_add[add,base=10,digits=2-6 after 2,4 for 3 steps each,evaluation=2-6]"


def test_it_never_ends_and_is_a_sequence_to_sequence_task() -> None:
    config = CopyAddConfig("copy_add", 301)
    dataset: Dataset = open_dataset(config, "seq2seq")
    assert dataset.n_batches("test", 8) is None
    source = find_source("copy_add")
    assert source.objectives == ("seq2seq",)
    assert source.vocab_size(config, "seq2seq") == dataset.vocab_size == 13
    assert source.target_length(config, "seq2seq") == dataset.length == 301
    with pytest.raises(UserError) as raised:
        open_dataset(config, "lm")
    assert raised.value.kind == "bad_objective"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"task": "cpoy"}, "data.task=cpoy"),
        ({"base": 1}, "data.base=1"),
        ({"base": 11}, "data.base=11"),
        ({"min_digits": 0}, "data.min_digits=0"),
        ({"min_digits": 129}, "data.max_digits=128"),
        ({"task": "add", "min_digits": 1}, "data.min_digits=1"),
        ({"eval_min_digits": 301}, "data.eval_max_digits=300"),
        ({"length": 299}, "longest question of 300 tokens"),
        ({"task": "add", "length": 300}, "longest question of 301 tokens"),
        ({"max_digits": 302}, "longest question of 302 tokens"),
        ({"stages": [64, 129]}, "a stage of 129 digits"),
        ({"min_digits": 4, "stages": [3]}, "a stage of 3 digits"),
        ({"stages": [64], "stage_steps": 0}, "data.stage_steps=0"),
    ],
)
def test_an_impossible_task_is_refused(keys: dict, says: str) -> None:
    with pytest.raises(UserError) as raised:
        open_dataset(replace(CopyAddConfig("copy_add", 301), **keys), "seq2seq")
    assert raised.value.kind == "bad_value"
    assert says in raised.value.message


def test_a_target_is_as_long_as_the_longest_answer_or_as_asked_for_where_that_is_more() -> None:
    for asked, length in ((0, 301), (256, 301), (400, 400)):
        config = CopyAddConfig("copy_add", 301, target_length=asked)
        assert open_dataset(config, "seq2seq").length == length
        assert find_source("copy_add").target_length(config, "seq2seq") == length


def test_the_longest_rows_that_just_fit_are_taken() -> None:
    open_dataset(CopyAddConfig("copy_add", 300, target_length=301), "seq2seq")
    open_dataset(CopyAddConfig("copy_add", 301, target_length=301, task="add"), "seq2seq")

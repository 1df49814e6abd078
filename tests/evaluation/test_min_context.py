"""Every token that is scored has the context asked for, and its loss is that of a pass over it alone (table 3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efftx.config.compose import compose
from efftx.data.dataset import Dataset, open_dataset
from efftx.data.windows import Corpus, LanguageModelRows
from efftx.errors import UserError
from efftx.models.build import build_model
from efftx.training.evaluation import evaluate_run, evaluate_split
from efftx.training.loop import train
from efftx.training.setting import Setting

CPU = torch.device("cpu")
TEXT = ["model=transformer", "data=text", "size=smoke", "threads=1", "data.length=16", "positions.axial_shape=[4,4]"]


def corpus_of(n: int) -> Corpus:
    text = (np.arange(n) % 251).astype(np.uint8)
    return Corpus("numbers", "numbers", "0", dict.fromkeys(("train", "valid", "test"), text), 256, "bytes")


def scored(dataset: Dataset, batch_size: int) -> list[tuple[int, int]]:
    """(place in the text, symbols before it in its row) of every symbol that counts, for a text of 0, 1, 2, ..."""
    found = []
    for i in range(dataset.n_batches("test", batch_size) or 0):
        batch = dataset.batch("test", 0, i, batch_size)
        for row, weights in zip(batch.tokens_BL.tolist(), batch.weights_BL.tolist(), strict=True):
            assert row == list(range(row[0], row[0] + len(row)))
            found += [(token, place) for place, (token, weight) in enumerate(zip(row, weights, strict=True)) if weight]
    return found


@given(st.integers(2, 12), st.data())
@settings(max_examples=60)
def test_each_symbol_counts_once_with_at_least_that_much_before_it(length: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(length, 90))
    context = data.draw(st.integers(0, length - 1))
    at_most = data.draw(st.none() | st.integers(length, 90))
    rows = LanguageModelRows(corpus_of(n), length, vocab_size=256, unit="bits/dim")
    found = scored(rows.with_minimum_context(context, at_most), data.draw(st.integers(1, 5)))
    assert [token for token, _ in found] == list(range(context, min(n, at_most or n)))
    assert all(before >= context for _, before in found)


def test_no_context_is_the_evaluation_as_it_was_and_a_whole_row_of_it_is_refused() -> None:
    rows = LanguageModelRows(corpus_of(50), 8, vocab_size=256, unit="bits/dim")
    slid = rows.with_minimum_context(0, None)
    assert slid.n_batches("test", 3) == rows.n_batches("test", 3)
    for i in range(3):
        before, after = (one.batch("test", 0, i, 3) for one in (rows, slid))
        assert torch.equal(before.tokens_BL, after.tokens_BL)
        assert torch.equal(before.weights_BL, after.weights_BL)
    assert bool((rows.with_minimum_context(5, None).batch("train", 0, 0, 4).weights_BL == 1).all())
    with pytest.raises(ValueError, match="context of 8"):
        rows.with_minimum_context(8, None)


@pytest.fixture
def text(tmp_path: Path) -> list[str]:
    words = np.random.RandomState(0).choice(["one ", "two ", "three\n", "four "], 400)
    (tmp_path / "a.txt").write_text("".join(words))
    return [*TEXT, f"data.path={tmp_path / 'a.txt'}"]


@pytest.mark.parametrize("context", [1, 8, 12, 15])
def test_the_loss_is_that_of_a_naive_loop_over_every_token(text: list[str], context: int) -> None:
    config = compose([*text, f"evaluation.min_context={context}", "evaluation.batches=0", "training.batch_size=3"])
    dataset = open_dataset(config.data)
    torch.manual_seed(0)
    model = build_model(config, dataset.vocab_size, CPU, torch.float64).eval()
    found = evaluate_split(model, Setting(config, dataset, CPU, torch.float64), "test", final=True)
    assert isinstance(dataset, LanguageModelRows)
    every = np.asarray(dataset._windows.corpus.arrays["test"]).astype(np.int64)
    length, step = 16, 16 - context
    nats = []
    with torch.no_grad():
        for place in range(context, len(every)):
            # The row that scores it is the first that reaches it; the last row is moved back to end with the text.
            start = min(max(place - length + 1 + step - 1, 0) // step * step, len(every) - length)
            row = torch.from_numpy(every[start : start + length])[None]
            log_p = model(row).double().log_softmax(-1)[0]
            nats.append(-float(log_p[place - start, every[place]]))
    assert found["loss"] == pytest.approx(np.mean(nats), rel=1e-9)
    assert found["min_context"] == context


def test_validation_while_training_has_none_and_a_finished_run_is_evaluated_with_any(
    text: list[str], tmp_path: Path
) -> None:
    plain = train(compose([*text, "training.steps=3", "schedule.warmup=1", f"run_dir={tmp_path / 'a'}"]))
    sliding = compose([*text, "training.steps=3", "schedule.warmup=1", "evaluation.min_context=8"])
    slid = train(sliding, tmp_path / "b")
    assert slid.hash != plain.hash
    assert slid.weights_sha256 == plain.weights_sha256
    assert slid.curve == plain.curve
    assert slid.metrics["loss"] != plain.metrics["loss"]
    assert "min_context" not in plain.metrics
    assert evaluate_run(plain.run, sliding) == slid.metrics


def test_the_same_stretch_of_text_is_scored_whatever_the_context(text: list[str]) -> None:
    config = compose([*text, "evaluation.batches=2", "training.batch_size=2"])
    dataset = open_dataset(config.data)
    assert isinstance(dataset, LanguageModelRows)
    covered = dataset.with_minimum_context(12, 2 * 2 * 16)
    weights = [covered.batch("test", 0, i, 2).weights_BL for i in range(covered.n_batches("test", 2) or 0)]
    assert sum(float(one.sum()) for one in weights) == 2 * 2 * 16 - 12


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*TEXT, "data.path=a.txt", "evaluation.min_context=16"], "leaves nothing to score of rows of data.length=16"),
        ([*TEXT, "data.path=a.txt", "evaluation.min_context=-1"], "must not be negative"),
        (["model=transformer", "data=photos", "size=smoke", "evaluation.min_context=8"], "each stand alone"),
        (["model=transformer", "data=duplicate", "size=smoke", "evaluation.min_context=8"], "each stand alone"),
        (["model=terraformer", "size=smoke", "evaluation.min_context=8"], "only a language model reads on"),
    ],
)
def test_what_no_row_can_give_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        compose(words)
    assert told.value.hint or "negative" in says

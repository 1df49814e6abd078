"""A step accumulated over micro-batches is the step of one large batch: the same rows, every target counted alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from efftx.config.compose import compose
from efftx.config.schema import Config
from efftx.data.dataset import open_dataset
from efftx.models.build import build_model
from efftx.runs.run_directory import read_metrics
from efftx.training.loop import train
from efftx.training.setting import Setting
from efftx.training.step import accumulate

CPU = torch.device("cpu")
QUIET = ["size=smoke", "threads=1", "dtype=float64", "dropout=0", "attention_dropout=0", "training.clip_norm=0"]
LENGTHS = ["data.length=64", "data.target_length=176", "data.tokenizer=bytes"]
NO_COINS = ["sparse_ff.quant_prob=0", "sparse_ff.temperature=0"]
FEW_DIGITS = ["data.min_digits=2", "data.max_digits=8", "data.eval_min_digits=9", "data.eval_max_digits=12"]
OBJECTIVES = {
    "lm": ["model=transformer", "data=duplicate"],
    "lm of a text": ["model=transformer", "data=stdlib"],
    "reversible lsh": ["model=reformer", "data=duplicate", "attention=[lsh,local]"],
    "span corruption": ["model=terraformer", "data=c4", "data.path=efftx:samples/c4", "attention=[full]", *NO_COINS],
    "span corruption in a sparse encoder-decoder": [
        "model=scaling",
        "stack=encoder_decoder",
        "data=c4",
        "data.path=efftx:samples/c4",
        *NO_COINS,
    ],
    "seq2seq": ["model=transformer", "stack=encoder_decoder", "positions.kind=learned", "data=summarization", *LENGTHS],
    "seq2seq in a concatenated stack with lsh": ["model=terraformer", "data=summarization", *LENGTHS, *NO_COINS],
    "labels": [
        "model=transformer",
        "stack=encoder_decoder",
        "positions.kind=learned",
        "data=glue",
        "data.path=efftx:samples/glue",
    ],
    "digits": ["model=transformer", "stack=encoder_decoder", "positions.kind=learned", "data=copy_add", *FEW_DIGITS],
}


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Summaries of 2 and of 160 bytes in turn."""
    for split in ("train", "valid", "test"):
        rows = [{"article": f"Article {i}. " * (1 + i % 4), "abstract": "ab" * (1 + 79 * (i % 2))} for i in range(40)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def words_of(name: str, uneven: Path) -> list[str]:
    words = [*QUIET, *OBJECTIVES[name]]
    words += [f"data.path={uneven}"] if "data=summarization" in words else []
    kind = compose(words).positions.kind
    return [*words, "positions.start_from_zero=true", "positions.base_dropout=0"] if kind == "digits" else words


def step_of(config: Config) -> tuple[float, dict[str, Tensor]]:
    dataset = open_dataset(config.data, config.objective)
    model = build_model(config, dataset.vocab_size, CPU, torch.float64)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    loss = accumulate(model, Setting(config, dataset, CPU, torch.float64).share(3), scaler, config, 3)
    scale = scaler.get_scale()
    return float(loss), {name: p.grad / scale for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.usefixtures("one_rotation")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_do_not_depend_on_how_a_batch_is_cut(
    name: str, uneven: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rotations of hash attention, which are drawn anew in every micro-batch, held the same."""
    monkeypatch.setattr("efftx.machine.devices.seed_step", lambda *numbers: torch.manual_seed(0))
    words = words_of(name, uneven)
    loss, gradients = step_of(compose([*words, "training.batch_size=4"]))
    for rows, count in ((2, 2), (1, 4)):
        cut = compose([*words, f"training.batch_size={rows}", f"training.accumulation={count}"])
        loss_of_parts, gradients_of_parts = step_of(cut)
        assert loss_of_parts == pytest.approx(loss, rel=1e-12)
        assert gradients_of_parts.keys() == gradients.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradients_of_parts[key], gradient, rtol=1e-9, atol=1e-12)


def test_a_training_of_uneven_targets_is_the_same_at_every_cut(uneven: Path, tmp_path: Path) -> None:
    words = [*words_of("seq2seq", uneven), "training.steps=3", "evaluation.every=0"]
    runs = []
    for rows, count in ((4, 1), (2, 2), (1, 4)):
        config = compose([*words, f"training.batch_size={rows}", f"training.accumulation={count}"])
        run = train(config, tmp_path / f"run-{rows}", silent=True).run
        runs.append([(line["loss"], line["grad_norm"]) for line in read_metrics(run) if "grad_norm" in line])
    whole, *cut = runs
    assert len(whole) == 3
    for other in cut:
        for step, (loss, norm) in enumerate(other):
            assert (loss, norm) == pytest.approx(whole[step], rel=1e-9)


def test_micro_batches_are_the_rows_of_one_batch_in_order_at_every_step() -> None:
    config = compose(["model=transformer", "data=duplicate", "size=smoke", "training.accumulation=3", "seed=5"])
    dataset, rows = open_dataset(config.data), config.training.batch_size
    setting = Setting(config, dataset, CPU, torch.float32)
    for step in (1, 2, 5):
        parts = setting.micro_batches(step)
        whole = dataset.batch("train", 5, step - 1, 3 * rows)
        assert [len(part.tokens_BL) for part in parts] == [rows] * 3
        assert torch.equal(torch.cat([part.tokens_BL for part in parts]), whole.tokens_BL)
        assert torch.equal(torch.cat([part.weights_BL for part in parts]), whole.weights_BL)
    later = [row.tobytes() for step in (1, 2) for part in setting.micro_batches(step) for row in part.tokens_BL.numpy()]
    assert len(set(later)) == 2 * 3 * rows


def test_each_micro_batch_draws_for_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two micro-batches, two steps and two seeds: eight different random states."""
    drawn: list[float] = []

    def look(model: Any, batch: Any, total: Tensor) -> Tensor:
        drawn.append(float(torch.rand(())))
        return next(model.parameters()).sum() * 0

    monkeypatch.setattr("efftx.training.step.loss_of", look)
    for seed in (0, 1):
        words = ["model=transformer", "data=duplicate", "size=smoke", "training.accumulation=2", f"seed={seed}"]
        train(compose(words), tmp_path / f"run-{seed}", steps=2, silent=True)
    assert len(set(drawn)) == len(drawn) == 8
    again = drawn.copy()
    drawn.clear()
    words = ["model=transformer", "data=duplicate", "size=smoke", "training.accumulation=2", "seed=0"]
    train(compose(words), tmp_path / "again", steps=2, silent=True)
    assert drawn == again[:4]

"""efftx in Python, as the README shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import efftx
from efftx.api import COLUMNS
from efftx.cli import main
from efftx.errors import UserError
from efftx.study.records import Record, RecordStore


def test_a_run_gives_its_model_its_tokenizer_and_its_configuration(tmp_path: Path) -> None:
    words = ["model=transformer", "data=text", "data.path=efftx:samples/c4", "size=smoke", "training.steps=2"]
    assert main(["train", *words, "schedule.warmup=1", "evaluation.batches=1", f"run_dir={tmp_path / 'run'}"]) == 0
    run = efftx.load(tmp_path / "run")
    tokens = torch.tensor([run.tokenizer.encode("efficient")])
    with torch.no_grad():
        logits = run.model(tokens)
    assert logits.shape[:2] == (1, 9)
    assert run.tokenizer.decode(tokens[0].tolist()) == "efficient"
    assert run.config.training.steps == run.step == 2
    with pytest.raises(UserError, match="is not a run directory"):
        efftx.load(tmp_path)


def test_records_are_a_data_frame_with_every_number_in_it(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    own = {"config": {}, "hash": "h", "metrics": {"": {"accuracy": 50.0, "loss": None}}}
    store.write(Record("reformer/table2", "LSH-4", 1, "cpu", **own))
    store.write(Record("reformer/table2", "LSH-4", 0, "cpu", **own, swept={"key": "optimizer.lr", "value": 0.1}))
    frame = efftx.records("reformer/table2", results=tmp_path)
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == 4
    first = frame[frame.swept.isna()].iloc[0]
    assert (first["item"], first["row"], first["metric"], first["value"], first["seed"]) == (
        *("reformer/table2", "LSH-4", "accuracy", 50.0, 1),
    )
    assert set(frame[frame.swept == "optimizer.lr"].swept_value) == {0.1}
    assert efftx.records("scaling", results=tmp_path).empty
    assert len(efftx.records(results=tmp_path)) == 4
    with pytest.raises(UserError, match="Did you mean 'reformer/table"):
        efftx.records("reformer/table99", results=tmp_path)


def test_importing_efftx_loads_neither_torch_nor_pandas() -> None:
    code = "import sys, efftx; print([m for m in ('torch', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_efftx_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        efftx.nothing  # noqa: B018

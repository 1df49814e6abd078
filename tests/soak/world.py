"""What the soak harms: small trainings on sample text, prepared data, records, all under one folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

DATA = [
    *("data=c4", "data.path=efftx:samples/c4", "data.length=64", "data.target_length=32"),
    *("data.tokenizer=unigram", "data.vocab_size=130"),
]
TRAINING = [
    *("model=scaling", "size=smoke", "threads=1", *DATA, "training.steps=12", "training.batch_size=2"),
    *("evaluation.batches=1", "evaluation.every=4", "checkpoint.every=3"),
]
SHARDED = ["distributed.strategy=fsdp", "checkpoint.asynchronous=true"]
SIDE_BY_SIDE = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
ITEM, ROW = "reformer/table2", "LSH-4"
REPRODUCTION = ["reproduce", ITEM, "--row", ROW, "size=smoke", "seeds=0,1"]


def use_roots(folder: Path) -> None:
    """Everything that efftx writes from now on is under `folder`."""
    for name in ("data", "runs", "results"):
        os.environ[f"EFFTX_{name.upper()}"] = str(folder / name)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.environ["TMPDIR"] = str(folder / "tmp")
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = None  # it is looked up once a process

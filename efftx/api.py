"""efftx in Python: `efftx.load` gives the model of a run, `efftx.records` the numbers of the records."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import pandas

from efftx.core.lines import say
from efftx.sampling.request import Request
from efftx.sampling.trained import Trained, load_run
from efftx.study.experiments import load_experiments, select
from efftx.study.records import Record, RecordStore

COLUMNS = ("item", "size", "row", "column", "metric", "value", "seed", "swept", "swept_value", "hash", "replayed")


def load(run: str | PathLike[str]) -> Trained:
    """The model of a run, in eval mode, with the weights of its newest checkpoint: `model`, `tokenizer`, `config`.

    `run` is the directory that `efftx train` or `efftx import` printed. UserError where there is no run or no
    checkpoint there, or weights that are not of its configuration.
    """
    return load_run(Path(run), Request(), say)


def records(*items: str, results: str | PathLike[str] | None = None) -> pandas.DataFrame:
    """Every number of the records of some items, one a row, with the columns `COLUMNS`; of all items without names.

    `items` are tables, figures or papers, as for `efftx report`; `results` is the folder, EFFTX_RESULTS or ./results
    where it is not given. `swept` and `swept_value` name the key and the value of a sweep's run, None for a row's own.
    `replayed` is what the last replay said, None before there was one. Damaged records are left out; UserError for an
    item that is not known.
    """
    store = RecordStore(None if results is None else Path(results))
    experiments = load_experiments()
    chosen = select(experiments, items) if items else list(experiments.values())
    read = [record for e in chosen for record in (*store.read_all(e.id), *store.read_sweeps(e.id))]
    return pandas.DataFrame([line for record in read for line in _lines(store, record)], columns=pandas.Index(COLUMNS))


def _lines(store: RecordStore, record: Record) -> Iterator[tuple[Any, ...]]:
    verification = store.verification(record)
    about = (record.seed, record.swept.get("key"), record.value, record.hash, verification and verification.verdict)
    for column, metrics in record.metrics.items():
        for metric, value in metrics.items():
            yield (record.id, record.size, record.row, column, metric, value, *about)

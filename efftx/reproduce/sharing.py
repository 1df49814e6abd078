"""Several `efftx reproduce` on one store share the work: a row at a seed is at work in one process at a time."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from efftx.core.files import writing
from efftx.study.experiment import Experiment
from efftx.study.records import RecordStore
from efftx.study.sweeps import Run

FOLDER = ".locks"
ELSEWHERE = "set EFFTX_RESULTS to another place"


def check_writable(store: RecordStore) -> None:
    """UserError where the store cannot be written: said once, before anything is run for it."""
    with writing(store.root, ELSEWHERE):
        (store.root / FOLDER).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store.root / FOLDER):
            pass


@contextmanager
def holding(store: RecordStore, experiment: Experiment, run: Run, *, wait: bool) -> Iterator[bool]:
    """Whether this process has `run` to itself; with `wait`, once another that has it has ended.

    The lock is the system's: it goes with its process, however that ends. UserError where the store cannot be written.
    """
    *what, value = run.key(experiment)
    name = hashlib.sha256(json.dumps([*what, *([] if value is None else [value])]).encode()).hexdigest()[:16]
    lock = FileLock(store.root / FOLDER / f"{name}.lock")
    with writing(store.root, ELSEWHERE):
        (store.root / FOLDER).mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            mine = False
        else:
            mine = True
    try:
        yield mine
    finally:
        if mine:
            lock.release()

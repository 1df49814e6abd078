"""Timings that wait for nobody, of small things."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from efftx.bench import decode_weights


@pytest.fixture(autouse=True)
def own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of a machine of the test's own: other timings may run meanwhile."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(autouse=True)
def few_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few random numbers for the weights of `bench decode`, and an environment that is put back."""
    monkeypatch.setattr(decode_weights, "_TILE", 2**20)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")

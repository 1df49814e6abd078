"""What the tests' own fixtures promise."""

from __future__ import annotations

import os

import pytest

from tests.conftest import restore


def test_changed_removed_and_new_variables_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFTX_CHANGED", "before")
    monkeypatch.setenv("EFFTX_REMOVED", "before")
    before = dict(os.environ)
    os.environ["EFFTX_CHANGED"] = os.environ["EFFTX_NEW"] = "after"
    del os.environ["EFFTX_REMOVED"]
    restore(before)
    assert dict(os.environ) == before

"""The kernels are compiled once, and where they cannot be everything goes on without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from efftx.native import library


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EFFTX_NATIVE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    library.kernels.cache_clear()
    yield tmp_path / "cache" / "efftx" / "native"
    library.kernels.cache_clear()


needs_compiler = pytest.mark.skipif(library.kernels() is None, reason="no C++ compiler")


@needs_compiler
def test_they_are_compiled_once_and_kept(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.kernels() is not None
    (file,) = fresh.iterdir()
    assert "bits a vector" in library.described()
    library.kernels.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(library, "FLAGS", ("--no-such-flag",))  # another command is another library
        assert library.kernels() is None
    library.kernels.cache_clear()
    made = file.stat().st_mtime_ns
    assert library.kernels() is not None
    assert [f.stat().st_mtime_ns for f in fresh.iterdir()] == [made]


@pytest.mark.parametrize("name", ["no-such-compiler", "false", "true", "''", "python3"])
def test_without_a_compiler_that_works_there_are_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", name)
    assert library.kernels() is None
    assert library.described() == "none"
    assert not library.usable(torch.zeros(3))


def test_beside_another_openmp_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_has_other_threads", lambda: True)
    assert library.kernels() is None


def test_the_environment_switches_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFTX_NATIVE", "0")
    assert library.kernels() is None


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert library.kernels() is not None


@needs_compiler
def test_a_library_that_is_broken_is_done_without(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", " ".join(library._compilers()[0]))
    library._compiled(library._compilers()[0]).write_bytes(b"no library")
    library.kernels.cache_clear()
    assert library.kernels() is None


@needs_compiler
def test_usable_is_what_can_be_read_as_it_lies() -> None:
    assert library.usable(torch.zeros(3, 4), None, torch.zeros(0))
    assert not library.usable(torch.zeros(3, 4).t())
    assert not library.usable(torch.zeros(3), torch.zeros(3, dtype=torch.float64))
    assert not library.usable(torch.zeros(3, device="meta"))

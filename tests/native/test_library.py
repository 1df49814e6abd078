"""The kernels are compiled once, and where they cannot be everything goes on without them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from efftx.core.artifact import checksum_file, read_checked
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


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the library, for tests that do not ask how it came there."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder))
        patched.delenv("EFFTX_NATIVE", raising=False)
        patched.delenv("CXX", raising=False)
        library.kernels.cache_clear()
        assert library.kernels() is not None
        library.kernels.cache_clear()
    return folder / "efftx" / "native"


@pytest.fixture
def compiled(fresh: Path, compiled_once: Path) -> Path:
    """`fresh`, with the library in it."""
    return shutil.copytree(compiled_once, fresh)


@needs_compiler
def test_they_are_compiled_once_and_kept(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.kernels() is not None
    file, checksum = sorted(path for path in fresh.iterdir() if path.name != ".lock")
    assert checksum.name == f"{file.name}.sha256"
    assert "bits a vector" in library.described()
    library.kernels.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(library, "FLAGS", ("--no-such-flag",))  # another command is another library
        assert library.kernels() is None
    library.kernels.cache_clear()
    made = file.stat().st_mtime_ns
    assert library.kernels() is not None
    assert file.stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no-such-compiler", "No such file"),
        ("false", "false: exit code 1"),
        ("true", "No such file"),
        ("''", "Permission denied|No such file"),
        ("   ", "CXX=    names nothing"),
        ("python3", "python3: exit code"),
        ('g++ "', "No closing quotation"),
        ("/", "Permission denied"),
    ],
)
def test_without_a_compiler_that_works_there_are_none_and_it_is_said_once(
    name: str, why: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", name)
    assert library.kernels() is None
    assert library.described() == "none"
    assert not library.usable(torch.zeros(3))
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("note: decoding goes on without compiled kernels")
    assert re.search(why, line)


def test_with_no_compiler_on_the_path_there_are_none(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    assert library.kernels() is None
    assert "none of c++, g++, clang++ is here" in capfd.readouterr().err


def test_a_compiler_that_hangs_is_ended_with_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    compiler = tmp_path / "slow"
    compiler.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {tmp_path}/child\nwait\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(library, "SECONDS_TO_NAME_ITSELF", 1)
    assert library.kernels() is None
    assert "has not ended after 1 seconds" in capfd.readouterr().err
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        try:
            os.kill(child, 0)
            state = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":  # dead, and its parent in no hurry to hear of it
            return
        time.sleep(0.05)
    pytest.fail("the compiler's child lives")


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


def truncate(file: Path) -> None:
    os.truncate(file, 20_000)


def unname(file: Path) -> None:
    checksum_file(file).unlink()


def make_unreadable(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


@needs_compiler
@pytest.mark.parametrize("harm", [truncate, unname, make_unreadable])
def test_a_library_that_is_damaged_is_compiled_anew(
    compiled: Path, harm: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    program = "from efftx.native import library; import sys; sys.exit(library.kernels() is None)"
    (file,) = compiled.glob("*.so")
    whole = file.read_bytes()
    harm(file)
    (compiled / ".making-old").mkdir()
    # In a process of its own: a library that is not whole would end this one.
    subprocess.run([sys.executable, "-c", program], check=True)
    assert len(file.read_bytes()) == len(whole)
    assert read_checked(file) is not None
    assert sorted(path.name for path in compiled.iterdir()) == [".lock", file.name, checksum_file(file).name]
    assert "note" not in capfd.readouterr().err


@needs_compiler
@pytest.mark.usefixtures("compiled")
def test_a_cache_that_can_only_be_read_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_folder", lambda: pytest.fail("compiled again"))
    assert library.kernels() is not None


@needs_compiler
@pytest.mark.usefixtures("compiled")
def test_usable_is_what_can_be_read_as_it_lies() -> None:
    assert library.usable(torch.zeros(3, 4), None, torch.zeros(0))
    assert not library.usable(torch.zeros(3, 4).t())
    assert not library.usable(torch.zeros(3), torch.zeros(3, dtype=torch.float64))
    assert not library.usable(torch.zeros(3, device="meta"))

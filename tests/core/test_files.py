"""Files are whole or absent whatever happens, and reading one never hangs."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from efftx.core import files
from efftx.core.files import DamagedFileError, open_file, read_file, sweep, write_atomically, write_error
from efftx.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    for data in (b"old", b"new, and longer", b""):
        write_atomically(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write_atomically(tmp_path / "file", b"old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError, match="full"):
        write_atomically(tmp_path / "file", b"new")
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


WRITER = """
import os, sys, time
from pathlib import Path
from efftx.core import files
def stop(*arguments):
    print("ready", flush=True)
    time.sleep(60)
files.os.replace = stop
files.write_atomically(Path(sys.argv[1]), b"new")
"""


def test_what_a_killed_writer_left_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    (tmp_path / ".other.tmp").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "file")], stdout=subprocess.PIPE, text=True
    ) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            sweep(tmp_path)
            assert len(names(tmp_path)) == 3
        finally:
            writer.send_signal(signal.SIGKILL)
    sweep(tmp_path)
    assert names(tmp_path) == [".other.tmp", "file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_writer_whose_new_file_was_swept_before_it_was_locked_writes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = fcntl.flock, []

    def swept_first(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (found,) = tmp_path.glob(".file.*.tmp")
            found.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", swept_first)
    write_atomically(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert names(tmp_path) == ["file"]


def test_a_writer_whose_new_file_is_locked_by_a_sweep_that_then_removes_it_writes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, fsync, sweeps = fcntl.flock, os.fsync, list[tuple[Path, int]]()

    def locked_first(descriptor: int, operation: int) -> None:
        if not sweeps:
            (found,) = tmp_path.glob(".file.*.tmp")
            sweeps.append((found, os.open(found, os.O_RDONLY)))
            flock(sweeps[0][1], operation)
        flock(descriptor, operation)

    def removed_by_then(descriptor: int) -> None:
        sweeps[0][0].unlink(missing_ok=True)
        fsync(descriptor)

    monkeypatch.setattr(files.fcntl, "flock", locked_first)
    monkeypatch.setattr(files.os, "fsync", removed_by_then)
    write_atomically(tmp_path / "file", b"whole")
    os.close(sweeps[0][1])
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert names(tmp_path) == ["file"]


def test_where_there_are_no_locks_a_file_is_written_and_nothing_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    (tmp_path / ".other.tmp").write_bytes(b"")
    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    write_atomically(tmp_path / "file", b"whole")
    sweep(tmp_path)
    assert names(tmp_path) == [".other.tmp", "file"]


def test_a_folder_that_is_not_there_has_nothing_to_sweep(tmp_path: Path) -> None:
    sweep(tmp_path / "absent")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [Path.mkdir, make_fifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_damage_at_once(tmp_path: Path, make: object) -> None:
    make(tmp_path / "file")  # type: ignore[operator]
    with pytest.raises(DamagedFileError, match="file is damaged: it is") as caught:
        read_file(tmp_path / "file", 10, "Do this.")
    assert caught.value.hint == "Do this."
    assert caught.value.kind == "damaged_file"


@pytest.mark.parametrize("where", ["absent", "file/below"])
def test_a_missing_file_is_missing(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / where)


def test_a_name_that_is_too_long_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_file(tmp_path / ("x" * 300))
    assert caught.value.kind == "cannot_read"


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(DamagedFileError, match="more than 4 bytes"):
        read_file(tmp_path / "file", 4)


@pytest.mark.parametrize(
    ("code", "hint"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "Make it writable"), (errno.ENOTDIR, "Check the path")],
)
def test_what_to_do_depends_on_what_refused(code: int, hint: str) -> None:
    error = write_error(Path("here"), OSError(code, ""), "set EFFTX_X")
    assert error.hint.startswith(hint)
    assert "set EFFTX_X" in error.hint
    assert "here" in error.message

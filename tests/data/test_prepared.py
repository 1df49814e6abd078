from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efftx.data.prepared import damage, data_root, locked, prepare_once, read_prepared
from efftx.errors import UserError

SHA256 = "0123456789ab" + "0" * 52
KEY = "text-0123456789ab"
META = {"name": "text", "variant": "text", "bytes": 3, "sha256": SHA256}


def write(folder: Path) -> dict[str, Any]:
    (folder / "train.bin").write_bytes(b"abc")
    return dict(META)


def replaced(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def visible(root: Path) -> list[str]:
    return [path.name for path in root.glob("prepared/*") if path.suffix != ".lock"]


def test_the_data_root_is_efftx_data_then_the_xdg_cache_then_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path
) -> None:
    assert data_root() == root
    monkeypatch.delenv("EFFTX_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root() == tmp_path / "cache" / "efftx" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_root() == tmp_path / "home" / ".cache" / "efftx" / "data"


def test_an_intact_folder_is_not_written_again(root: Path) -> None:
    first = prepare_once(KEY, write)

    def never(folder: Path) -> dict[str, Any]:
        raise AssertionError("written again")

    assert prepare_once(KEY, never) == first
    assert damage(first.folder) is None
    assert visible(root) == [KEY]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "train.bin").write_bytes(b"abd"), "another SHA-256"),
        (lambda folder: (folder / "train.bin").write_bytes(b"ab"), "2 bytes instead of 3"),
        (lambda folder: (folder / "train.bin").unlink(), "train.bin is missing"),
        (lambda folder: (folder / "meta.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "meta.json").write_text("[]"), "cannot be read"),
        (lambda folder: (folder / "meta.json").write_text("[" * 200_000), "cannot be read"),
        (lambda folder: (folder / "meta.json").unlink(), "is missing"),
        (lambda folder: replaced(folder / "meta.json", Path.mkdir), "cannot be read"),
        (lambda folder: replaced(folder / "meta.json", os.mkfifo), "cannot be read"),
        (lambda folder: replaced(folder / "train.bin", Path.mkdir), "train.bin is missing"),
        (lambda folder: replaced(folder / "train.bin", os.mkfifo), "train.bin is missing"),
    ],
)
def test_a_damaged_folder_is_noticed_and_made_anew(harm: Any, said: str) -> None:
    folder = prepare_once(KEY, write).folder
    harm(folder)
    assert said in (damage(folder) or "")
    assert prepare_once(KEY, write).folder == folder
    assert damage(folder) is None


def test_every_flipped_bit_of_the_meta_data_is_noticed() -> None:
    meta = prepare_once(KEY, write).folder / "meta.json"
    whole = meta.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        meta.write_bytes(changed)
        assert damage(meta.parent) is not None


def test_a_file_where_the_folder_goes_is_replaced(root: Path) -> None:
    (root / "prepared").mkdir(parents=True)
    (root / "prepared" / KEY).write_text("a file")
    assert prepare_once(KEY, write).size("train") == 3


def test_the_meta_data_of_another_text_is_noticed() -> None:
    prepare_once(KEY, write)
    other = prepare_once("text-ffffffffffff", lambda folder: write(folder) | {"sha256": "f" * 64})
    other.folder.joinpath("meta.json").write_bytes((other.folder.parent / KEY / "meta.json").read_bytes())
    assert "does not belong" in (damage(other.folder) or "")


def test_a_failure_leaves_nothing_half_written(root: Path) -> None:
    def fails(folder: Path) -> dict[str, Any]:
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_once(KEY, fails)
    assert visible(root) == []


def test_what_a_killed_process_left_is_swept_away(root: Path) -> None:
    killed = root / "prepared" / f".{KEY}.abc.tmp"
    killed.mkdir(parents=True)
    other, busy = (root / "prepared" / f".{name}-0123456789ab.abc.tmp" for name in ("other", "busy"))
    other.mkdir()
    busy.mkdir()
    with locked("busy-0123456789ab"):
        prepare_once(KEY, write)
    assert not killed.exists()
    assert not other.exists()
    assert busy.exists(), "another process is writing it"


def test_what_another_user_left_and_only_they_can_remove_is_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = [root / "prepared" / f".{key}.abc.tmp" for key in (KEY, "other-0123456789ab")]
    for folder in theirs:
        folder.mkdir(parents=True)
    remove = shutil.rmtree

    def refused(folder: Path, ignore_errors: bool = False) -> None:
        if folder in theirs and not ignore_errors:
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        remove(folder, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", refused)
    assert read_prepared(prepare_once(KEY, write).folder) is not None
    assert all(folder.exists() for folder in theirs)


def test_a_data_root_that_cannot_be_made_is_the_users_to_mend(root: Path) -> None:
    root.write_text("a file where a folder should be")
    with pytest.raises(UserError) as raised:
        prepare_once(KEY, write)
    assert raised.value.kind == "cannot_write"
    assert "EFFTX_DATA" in raised.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_data_root_is_enough_to_read_and_refused_to_write(root: Path) -> None:
    folder = prepare_once(KEY, write).folder
    folder.parent.chmod(0o555)
    try:
        assert prepare_once(KEY, write).folder == folder
        with pytest.raises(UserError, match="cannot write") as raised:
            prepare_once("text-ffffffffffff", write)
        assert raised.value.kind == "cannot_write"
    finally:
        folder.parent.chmod(0o755)


def test_reading_takes_no_lock(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_once(KEY, write)
    monkeypatch.setattr("efftx.data.prepared.FileLock", None)
    assert read_prepared(prepare_once(KEY, write).folder) is not None


def test_a_full_disk_leaves_nothing_half_written(root: Path) -> None:
    code = f"""
import resource
from efftx.data.prepared import prepare_once
from efftx.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    prepare_once({KEY!r}, lambda folder: (folder / "train.bin").write_bytes(bytes(5000)) and {META!r})
except UserError as error:
    print(error.kind)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "cannot_write\n"
    assert visible(root) == []


def test_all_of_it_is_forced_to_the_disk_before_it_gets_its_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append((os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")), visible(root) == [KEY]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    prepare_once(KEY, write)
    assert ("train.bin", False) in synced
    assert any("meta.json" in name and not named for name, named in synced)
    assert synced[-1] == ("prepared", True)


def test_of_two_processes_one_writes_and_both_read(root: Path, tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from efftx.data.prepared import prepare_once
me = sys.argv[1]
def write(folder):
    Path({str(tmp_path)!r}, f"wrote-{{me}}").touch()
    time.sleep(0.5)
    (folder / "train.bin").write_bytes(b"abc")
    return {META!r}
Path({str(tmp_path)!r}, f"ready-{{me}}").touch()
while not Path({str(tmp_path)!r}, "go").exists():
    time.sleep(0.005)
print(prepare_once({KEY!r}, write).size("train"))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code, me], stdout=subprocess.PIPE, text=True) for me in ("a", "b")
    ]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [process.communicate(timeout=60)[0] for process in running] == ["3\n", "3\n"]
    assert [process.returncode for process in running] == [0, 0]
    assert len(list(tmp_path.glob("wrote-*"))) == 1
    assert visible(root) == [KEY]

"""Folders for what is thrown away: gone at the end, and after a kill at the next one's beginning."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from efftx.core.scratch import scratch_folder, sweep

HOLDS = """
import sys, time
from efftx.core.scratch import scratch_folder
with scratch_folder("efftx-test-") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_it_is_empty_and_goes_at_the_end_also_by_an_error(temporary: Path) -> None:
    def fails() -> None:
        with scratch_folder("efftx-test-") as folder:
            assert list(folder.iterdir()) == []
            (folder / "inner").mkdir()
            (folder / "inner" / "file").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_a_living_ones_and_others_files_stay(temporary: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(temporary)}
    others = [subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, env=environment) for _ in "ab"]
    try:
        killed, living = (
            Path((process.stdout.readline() if process.stdout else b"").decode().strip()) for process in others
        )
        others[0].send_signal(signal.SIGKILL)
        others[0].wait()
        (temporary / "efftx-test-file").write_text("no folder")
        (temporary / "efftx-test-link").symlink_to(temporary)
        (temporary / "mine").mkdir()
        assert killed.is_dir()
        with scratch_folder("efftx-test-") as folder:
            assert not killed.exists()
            kept = {folder.name, living.name, "efftx-test-file", "efftx-test-link", "mine"}
            assert {path.name for path in temporary.iterdir()} == kept
        assert (living / "file").read_text() == "x"
    finally:
        for process in others:
            process.kill()
            process.communicate()


def test_it_may_lie_elsewhere_and_what_is_left_there_is_swept(tmp_path: Path) -> None:
    (tmp_path / "efftx-test-left").mkdir()
    (tmp_path / "other").mkdir()
    with scratch_folder("efftx-test-", tmp_path) as folder:
        assert folder.parent == tmp_path
        assert {path.name for path in tmp_path.iterdir()} == {folder.name, "other"}
        sweep(tmp_path, "efftx-test-")
        assert folder.is_dir(), "its process is alive"
    assert [path.name for path in tmp_path.iterdir()] == ["other"]

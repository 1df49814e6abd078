"""The soak with few flips and a kill: that it runs, finds nothing, and would find something."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from efftx.core.files import DamagedFileError

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_three_flips_of_every_kind_of_file_and_a_kill_harm_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.soak", "--flips", "3", "--kills", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (killed,) = [line.split() for line in done.stdout.splitlines() if line.startswith("train ")]
    assert killed[1] == "1"
    counts = {line[:20].strip(): line[20:].split() for line in done.stdout.split("flipped bits")[1].splitlines()[1:]}
    assert {"config.json", "result.json", "record", "kernel library", "prepared arrays"} <= counts.keys()
    assert counts["all"] == [str(3 * (len(counts) - 1)), "0", "0", "0"]


def test_what_believes_a_changed_file_and_what_stumbles_over_it_are_counted(tmp_path: Path) -> None:
    from tests.soak.flips import NOTICED, TRACEBACK, WRONG, Kind, flip

    file = tmp_path / "file"
    file.write_bytes(b"1")

    def stumbling(path: Path) -> tuple[object, bool]:
        if path.read_bytes() != b"1":
            raise KeyError
        return 1, False

    def noticing(path: Path) -> tuple[object, bool]:
        if path.read_bytes() != b"1":
            raise DamagedFileError(path, "it is another")
        return 1, False

    def believing(path: Path) -> tuple[object, bool]:
        return path.read_bytes(), False

    for read, outcome in ((believing, WRONG), (stumbling, TRACEBACK), (noticing, NOTICED)):
        assert flip(Kind("a file", [file], read), 5, random.Random(0)) == {outcome: 5}
    assert file.read_bytes() == b"1"

"""The latency that a training ends with, and the bandwidth it is held against; nothing depends on how long it takes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from efftx.cli import main
from efftx.core.artifact import read_document, write_document
from efftx.decoding import latency
from efftx.machine.timing import lock_path
from efftx.runs.checkpoint import load_latest, weights_sha256
from efftx.training import evaluation

LANGUAGE_MODEL = ["model=reformer", "data=stdlib", "size=smoke", "threads=1"]
ENCODER_DECODER = ["model=terraformer", "data=stdlib", "size=smoke", "threads=1"]
FOUND = {"decode_ms", "decode_spread", "decode_tokens_per_second", "decode_bandwidth_share"}


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(latency, "READ_BYTES", 2**20)


def _trained(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["train", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("words", [LANGUAGE_MODEL, ENCODER_DECODER], ids=["language model", "encoder-decoder"])
def test_a_training_ends_with_its_latency_and_is_otherwise_what_it_was(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = _trained(capsys, *words, f"run_dir={tmp_path / 'timed'}")
    timings = timed["timings"]
    assert set(timings) >= FOUND
    assert timings["decode_tokens_per_second"] == pytest.approx(1000 / timings["decode_ms"])
    assert timings["decode_bandwidth_share"] > 0
    assert not FOUND & set(timed["metrics"])

    checkpoint = load_latest(tmp_path / "timed" / "checkpoints", on_damage=pytest.fail, read_only=True)
    assert checkpoint is not None
    assert weights_sha256(checkpoint.model) == timed["weights_sha256"]

    monkeypatch.setattr(evaluation, "decoding_latency", lambda *_: {})
    untimed = _trained(capsys, *words, f"run_dir={tmp_path / 'untimed'}")
    assert not FOUND & set(untimed["timings"])
    for key in ("metrics", "weights_sha256", "hash"):
        assert untimed[key] == timed[key]


def test_an_ablation_has_a_column_of_latency(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # the heading in one line, however long the path of the runs is
    assert main(["ablate", "lsh.n_hashes=1,2", *LANGUAGE_MODEL]) == 0
    words = " ".join(re.findall(r"[\w/]+", capsys.readouterr().out))
    assert "ms a decoded token" in words
    assert main(["ablate", "lsh.n_hashes=1,2", *LANGUAGE_MODEL, "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [set(run["timings"]) >= FOUND for run in runs] == [True, True]


def test_the_read_rate_is_measured_once_and_then_read_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = latency.read_rate()
    (file,) = tmp_path.glob("*read-rate*")
    monkeypatch.setattr(latency.torch, "ones", lambda *_: pytest.fail("it was measured again"))
    assert latency.read_rate() == first

    write_document(file, dict.fromkeys(read_document(file) or {}, 5.0))
    assert latency.read_rate() == 5.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"other": 1.0}', "null"])
def test_a_damaged_file_of_the_read_rate_is_measured_anew(text: str, tmp_path: Path) -> None:
    latency.read_rate()
    (file,) = tmp_path.glob("*read-rate*")
    file.write_text(text)
    assert latency.read_rate() > 0
    assert len(read_document(file) or {}) == 1


@pytest.mark.parametrize("rate", [5, "fast", None])
def test_a_kept_rate_that_is_no_float_is_measured_anew(rate: Any, tmp_path: Path) -> None:
    latency.read_rate()
    (file,) = tmp_path.glob("*read-rate*")
    write_document(file, dict.fromkeys(read_document(file) or {}, rate))
    found = latency.read_rate()
    assert found > 1000
    assert (read_document(file) or {}).popitem()[1] == found


def test_the_rate_is_kept_for_each_number_of_threads(tmp_path: Path) -> None:
    latency.read_rate()
    torch.set_num_threads(2)
    latency.read_rate()
    (file,) = tmp_path.glob("*read-rate*")
    assert len(read_document(file) or {}) == 2


def test_a_finished_training_loses_nothing_where_another_timing_holds_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "LATENCY_WAITS", 0.1)
    with FileLock(lock_path()):
        found = _trained(capsys, *LANGUAGE_MODEL, f"run_dir={tmp_path / 'busy'}")
    assert found["metrics"]
    assert not FOUND & set(found["timings"])


CRASH = """
import os, signal, sys
from efftx.cli import main
from efftx.training import evaluation
evaluation.decoding_latency = lambda *_: os.kill(os.getpid(), signal.SIGBUS)
main(sys.argv[1:])
"""


def test_a_crash_while_decoding_is_timed_takes_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*LANGUAGE_MODEL, f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-c", CRASH, "train", *words], capture_output=True)
    assert done.returncode == -signal.SIGBUS
    found = _trained(capsys, *words)
    assert found["resumed_from"] == found["step"]
    assert found["metrics"]
    assert not FOUND & set(found["timings"])


@pytest.mark.parametrize("error", [RuntimeError("no such thing"), MemoryError(), OSError(5, "Input/output error")])
def test_whatever_goes_wrong_while_decoding_is_timed_is_a_note(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(evaluation, "decoding_latency", fail)
    assert main(["train", *LANGUAGE_MODEL, f"run_dir={tmp_path / 'run'}", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "decoding was not timed" in err
    assert json.loads(out)["metrics"]

"""What the commands say of damaged files: one message that names the file, never a traceback or a wrong number."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from efftx.cli import main

ITEM = "reformer/figure5b"


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One digit of one record of ITEM is another; it alone has records here."""
    recorded = Path(__file__).parents[1] / "results" / "records" / ITEM
    shutil.copytree(recorded, tmp_path / "records" / ITEM)
    monkeypatch.setenv("EFFTX_RESULTS", str(tmp_path))
    path = next((tmp_path / "records" / ITEM).rglob("*-seed0.json"))
    text = path.read_text()
    place = text.index('"seconds": 0.') + len('"seconds": 0.')
    path.write_text(text[:place] + ("1" if text[place] != "1" else "2") + text[place + 1 :])
    return path


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = main([*words, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_report_and_list_name_a_damaged_record_and_leave_it_out(
    capsys: pytest.CaptureFixture[str], damaged: Path
) -> None:
    code, item, err = told(capsys, "report", ITEM)
    assert code == 1
    assert item["state"] == "partial"
    assert item["damaged"] == [f"{damaged} is damaged: it does not have its checksum."]
    assert f"Left out: {damaged}" in err
    assert "efftx reproduce" in err
    code, listed, err = told(capsys, "list", ITEM)
    assert code == 0
    assert listed["items"][0]["state"] == "partial"
    assert str(damaged) in listed["items"][0]["damaged"][0]
    assert f"Left out: {damaged}" in err


def test_a_damaged_replay_is_named_by_report_and_list(capsys: pytest.CaptureFixture[str], damaged: Path) -> None:
    damaged.unlink()
    other = damaged.with_name(damaged.name.replace("seed0", "seed1"))
    replay = Path(str(other).replace("/records/", "/verified/"))
    replay.parent.mkdir(parents=True)
    replay.write_text('{"verdict": "fresh"}')
    assert f"Left out: {replay}" in told(capsys, "list", ITEM)[2]
    code, item, err = told(capsys, "report", ITEM)
    assert code == 1
    assert len(item["damaged"]) == 1
    assert f"Left out: {replay}" in err


def test_the_report_is_written_without_it_and_its_check_fails(
    capsys: pytest.CaptureFixture[str], damaged: Path
) -> None:
    code, written, _ = told(capsys, "report")
    assert code == 1
    assert len(written["damaged"]) == 1
    code, checked, _ = told(capsys, "report", "--check")
    assert code == 1
    assert checked["differences"] == written["damaged"]
    damaged.unlink()
    assert told(capsys, "report", "--check")[0] == 0


def test_a_check_names_some_files_and_the_command_that_writes_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFTX_RESULTS", str(tmp_path))
    monkeypatch.setattr("efftx.report.build.check_report", lambda *_, **__: [f"{n}.md: missing" for n in range(90)])
    assert main(["report", "--check"]) == 1
    assert capsys.readouterr().out.split("\n")[0] == "The report was never written: `efftx report` writes it."
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("")
    assert main(["report", "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[19:] == ["19.md: missing", "... and 70 more", "`efftx report` writes it from the records."]


def test_reproduce_fails_on_it_and_overwrites_nothing(capsys: pytest.CaptureFixture[str], damaged: Path) -> None:
    before = damaged.read_bytes()
    for words in (["--verify"], []):
        code, answer, _ = told(capsys, "reproduce", ITEM, "seeds=0", "size=cpu", *words)
        assert code == 1
        (failure,) = [f for f in answer["items"][0]["failures"] if str(damaged) in f["message"]]
        assert "does not have its checksum" in failure["message"]
        if words:
            assert answer["items"][0]["failed"] == 1
    assert damaged.read_bytes() == before


# ---- a run -----------------------------------------------------------------------------------------------------------

TRAINING = ["model=transformer", "data=duplicate", "size=smoke", "threads=1", "evaluation.batches=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has come to its end."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *TRAINING, f"run_dir={run}"]) == 0
    return run


@pytest.fixture
def stopped(trained: Path, tmp_path: Path) -> Path:
    """The same run, killed after its last checkpoint and before its result."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "result.json").unlink()
    return run


def resume(capsys: pytest.CaptureFixture[str], run: Path) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    return told(capsys, "train", *TRAINING, f"run_dir={run}")


def test_metrics_cut_short_before_a_resume_are_told_and_the_run_goes_on(
    capsys: pytest.CaptureFixture[str], trained: Path, stopped: Path
) -> None:
    metrics = stopped / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(lines[:-2]))
    code, answer, err = resume(capsys, stopped)
    assert code == 0
    assert f"it lacks 2 of the {len(lines)} lines that were there at the checkpoint" in err
    assert answer["weights_sha256"] == json.loads((trained / "result.json").read_text())["weights_sha256"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "timings.jsonl", "config.json", "result.json"])
@pytest.mark.parametrize("harm", ["digit", "deep", "folder", "pipe"])
def test_a_file_of_a_run_that_is_another_is_one_message(
    capsys: pytest.CaptureFixture[str], trained: Path, stopped: Path, name: str, harm: str
) -> None:
    path = stopped / name
    whole = (trained / name).read_bytes()
    path.unlink(missing_ok=True)
    if harm == "folder":
        path.mkdir()
    elif harm == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"[" * 200_000 + b"\n" if harm == "deep" else whole.replace(b"1", b"2", 1))
    code, answer, err = resume(capsys, stopped)
    assert code == 2
    assert answer["error"]["kind"] == "damaged_file"
    assert str(path) in answer["error"]["message"]
    assert answer["error"]["hint"]
    assert "Traceback" not in err


def test_a_damaged_last_checkpoint_is_put_aside_and_the_one_before_it_gives_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*TRAINING, "training.steps=4", "checkpoint.every=2", "evaluation.every=0", f"run_dir={tmp_path / 'run'}"]
    _, whole, _ = told(capsys, "train", *words)
    (tmp_path / "run" / "result.json").unlink()
    model = tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\xff")
    code, again, err = told(capsys, "train", *words)
    assert code == 0
    assert "step-00000004 is damaged" in err
    assert again["resumed_from"] == 2
    assert (again["metrics"], again["weights_sha256"]) == (whole["metrics"], whole["weights_sha256"])

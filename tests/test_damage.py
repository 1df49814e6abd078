"""What the commands say of damaged files: one message that names the file, never a traceback or a wrong number."""

from __future__ import annotations

import json
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
    assert str(damaged) in listed["items"][0]["why"]
    assert f"Left out: {damaged}" in err


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

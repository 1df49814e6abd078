"""Commands as users type them first, word for word, with and without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from efftx.cli import main

TERRAFORMER_ON_C4 = ["train", "model=terraformer", "data=c4"]


@pytest.fixture(autouse=True)
def _roots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("EFFTX_RUNS", "EFFTX_DATA", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}],
    ids=["offline", "unreachable"],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["plain", "json"])
def test_c4_without_a_network_or_a_path_is_one_message_that_names_the_path(
    environment: dict[str, str], as_json: bool, tmp_path: Path
) -> None:
    words = [*TERRAFORMER_ON_C4, *(["--json"] if as_json else [])]
    done = subprocess.run(
        [sys.executable, "-m", "efftx", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    if as_json:
        assert "data.path" in json.loads(done.stdout)["error"]["hint"]
    else:
        assert done.stdout == ""
        assert done.stderr.startswith("efftx:")
        assert "data.path" in done.stderr
    assert not (tmp_path / "efftx_runs").exists()


def test_c4_with_a_path_trains(capsys: pytest.CaptureFixture[str]) -> None:
    brief = ["data.tokenizer=bytes", "training.steps=2", "schedule.warmup=1", "evaluation.batches=1", "threads=1"]
    assert main([*TERRAFORMER_ON_C4, "data.path=efftx:samples/c4", *brief, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 2
    assert result["metrics"]["loss"] > 0


def test_the_report_is_written_from_the_records_and_is_what_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = Path(__file__).parents[1] / "results"
    shutil.copytree(committed, tmp_path / "results", ignore=shutil.ignore_patterns("report", ".locks"))
    monkeypatch.setenv("EFFTX_RESULTS", str(tmp_path / "results"))
    assert main(["report"]) == 0
    assert "index.html" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "results" / "report").iterdir()}
    assert written >= {path.name for path in (committed / "report").iterdir()}
    table = (tmp_path / "results" / "report" / "scaling-table2.md").read_bytes()
    assert table == (committed / "report" / "scaling-table2.md").read_bytes()

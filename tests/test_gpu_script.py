"""`make gpu`, rehearsed on a CPU: the most valuable first, every record as it ends, and no longer than it may."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from efftx.study.experiments import load_experiments
from efftx.study.records import RecordStore

ROOT = Path(__file__).parents[1]
STUB = """\
#!/usr/bin/env bash
echo "$@" >> {log}
case "$1 $2" in
  "reproduce slow") trap 'exit 143' TERM; sleep 60 & wait ;;
  "reproduce broken") exit 1 ;;
esac
"""

TRAINED = """\
id: own/trained
caption: one row of the task that needs no data
kind: train
cell: {metric: accuracy, unit: "%", better: higher}
base: [model=transformer, data=duplicate]
sizes: {smoke: [training.steps=2, schedule.warmup=0]}
rows: {one: []}
seeds: {smoke: [0, 1]}
"""
TIMED = """\
id: own/timed
caption: one timing
kind: measure
measure: attention_time
cell: {metric: seconds, unit: s, better: lower}
parameters: {smoke: {d_model: 32, n_heads: 2, d_head: 16, warm_up: 1, repeats: 1}}
rows: {one: {parameters: {attention: sdpa}}}
columns: {128/2: {parameters: {length: 128, batch: 2}}}
seeds: {smoke: [0, 1]}
"""


def asked(tmp_path: Path, **given: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What `.ci/gpu` did with a command that does nothing, and the words that it was given."""
    stub, log = tmp_path / "efftx", tmp_path / "log"
    stub.write_text(STUB.format(log=log))
    stub.chmod(0o755)
    environment = {**os.environ, "EFFTX": str(stub), "OUT": str(tmp_path / "out"), **given}
    done = subprocess.run([str(ROOT / ".ci/gpu")], env=environment, capture_output=True, text=True, check=False)
    return done, log.read_text().splitlines()


def test_one_seed_of_every_row_comes_first_and_the_card_is_named(tmp_path: Path) -> None:
    done, words = asked(tmp_path)
    assert done.returncode == 0, done.stderr
    assert words == [
        "reproduce scaling/trend size=gpu seeds=0 jobs=4",
        "reproduce reformer/figure5b sparse/table2_time sparse/crossover size=gpu seeds=0",
        "bench attention device=cuda pass=forward lengths=1024,4096,16384 --json",
        "bench attention device=cuda pass=forward+backward lengths=1024,4096,16384 --json",
        "reproduce scaling/trend size=gpu jobs=4",
        "reproduce reformer/figure5b sparse/table2_time sparse/crossover size=gpu",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "attention-forward+backward.json",
        "attention-forward.json",
    ]


def test_the_items_that_it_asks_for_are_there_at_size_gpu() -> None:
    experiments = load_experiments()
    for id in ("scaling/trend", "reformer/figure5b", "sparse/table2_time", "sparse/crossover"):
        assert "gpu" in experiments[id].sizes_known()
        assert len(experiments[id].seeds["gpu"]) >= 3


def test_it_stops_when_its_time_is_over_and_says_that_it_can_go_on(tmp_path: Path) -> None:
    began = time.monotonic()
    done, words = asked(tmp_path, TRAINED="slow", SECONDS_AT_MOST="2")
    assert time.monotonic() - began < 20
    assert (done.returncode, len(words)) == (0, 1)
    assert "The 2 seconds are over; the same command again goes on from here." in done.stdout


def test_a_row_that_fails_does_not_stop_the_rest_and_is_told(tmp_path: Path) -> None:
    done, words = asked(tmp_path, TRAINED="broken")
    assert (done.returncode, len(words)) == (1, 6)


def test_it_is_rehearsed_on_a_cpu_at_smoke_size(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for name, text in {"trained": TRAINED, "timed": TIMED}.items():
        (tmp_path / "own" / f"{name}.yaml").write_text(text)
    environment = {
        **os.environ,
        "EFFTX": f"{sys.executable} -m efftx",
        "SIZE": "smoke",
        "DEVICE": "cpu",
        "JOBS": "1",
        "TRAINED": "own/trained",
        "TIMED": "own/timed",
        "EFFTX_EXPERIMENTS": str(tmp_path / "own"),
        "OUT": str(tmp_path / "out"),
        "EFFTX_RESULTS": str(tmp_path / "results"),
        "EFFTX_RUNS": str(tmp_path / "runs"),
    }
    done = subprocess.run([str(ROOT / ".ci/gpu")], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    store = RecordStore(tmp_path / "results")
    for id in ("own/trained", "own/timed"):
        records = store.read_all(id)
        assert {record.seed for record in records} == {0, 1}
        assert {(record.row, record.size, record.environment["gpu"]) for record in records} == {("one", "smoke", None)}
    assert (tmp_path / "out" / "attention-forward.json").stat().st_size > 0

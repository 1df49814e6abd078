"""Commands killed at random moments: what the same command then gives is what it gives when nobody stops it.

The commands run in forks of this process, which has imported everything and run nothing: a kill falls into the work.
Of a training in several processes one is killed, whichever, or all of them; those left have to end by themselves.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from efftx import launch
from efftx.cli import main
from efftx.core.files import DamagedFileError
from efftx.distributed import processes
from efftx.errors import UserError
from efftx.parent import GRACE
from efftx.runs.run_directory import read_config, read_metrics, read_result
from efftx.study.experiments import load_experiments
from efftx.study.records import RecordStore
from efftx.training import loop
from tests.processes import descendants_of, is_gone, wait_until
from tests.soak.world import DATA, ITEM, REPRODUCTION, SHARDED, SIDE_BY_SIDE, TRAINING, use_roots

KILLED, TOO_LATE, LOST, HUNG, TRACEBACK, LITTER = "killed", "too late", "lost", "hung", "traceback", "litter"
COLUMNS = (KILLED, TOO_LATE, LOST, HUNG, TRACEBACK, LITTER)
IN_A_ROW = 4
"""Kills before the command may come to its end."""
PATIENCE = 120.0
"""Seconds in which the processes that a kill leaves have to end."""

assert loop.train is not None, "imported for the forks"
processes.LONGEST_MEETING = timedelta(seconds=30)
assert launch.launchers() is not None


@dataclass(frozen=True)
class Victim:
    """A command, and what it leaves: `gives` reads all of it; `check` reads what a kill left, as other commands do.

    `begin` lays out what it starts from; a `cold` one finds no kernels and compiles them. `processes`: of one training.
    """

    name: str
    words: list[str]
    gives: Callable[[Path, dict[str, Any]], Any]
    check: Callable[[Path], object]
    begin: Callable[[Path], object] = lambda folder: None
    cold: bool = False
    processes: int = 1


def kill_all(n: int, folder: Path, seed: int = 0, only: str | None = None) -> dict[str, Counter[str]]:
    """For every victim, or the `only` one, what came of its part of `n` kills."""
    victims = [victim for victim in _victims() if only in (None, victim.name)]
    warm = folder / "warm"
    _run(_victims()[0], warm)
    found = {}
    for number, victim in enumerate(victims):
        if share := n // len(victims) + (number < n % len(victims)):
            print(f"{victim.name}: {share} kills", file=sys.stderr, flush=True)
            draw = random.Random(f"{seed} {victim.name}")
            found[victim.name] = kill(victim, share, warm, folder / victim.name, draw)
    return found


def kill(victim: Victim, n: int, warm: Path, folder: Path, draw: random.Random) -> Counter[str]:
    """What came of `n` kills of one command, which finds the caches of `warm`."""
    found: Counter[str] = Counter()

    def place(name: str) -> Path:
        new = folder / name
        new.mkdir(parents=True)
        if not victim.cold:
            shutil.copytree(warm / "cache", new / "cache")
            shutil.copytree(warm / "tmp", new / "tmp")
        use_roots(new)
        victim.begin(new)
        return new

    reference = place("reference")
    started = time.monotonic()
    code, out, err = _run(victim, reference)
    assert code == 0, f"{victim.name}: {out}{err}"
    right = _gives(victim, reference, code, out, err)
    seconds = time.monotonic() - started
    while found[KILLED] < n:
        here = place("here")
        for _ in range(min(IN_A_ROW, n - found[KILLED])):
            ranks = range(victim.processes)
            code, _, err = _run(victim, here, draw.uniform(0, seconds), draw.choice([*([r] for r in ranks), [*ranks]]))
            if HUNG in err:
                found[HUNG] += 1
                print(f"{HUNG}: {victim.name}: {err}", flush=True)
            trouble = "Traceback" in err
            try:
                victim.check(here)
            except UserError as error:
                found[LOST] += 1
                print(f"{LOST}: {victim.name}: {error.message}", flush=True)
            except Exception:
                trouble = True
                traceback.print_exc()
            found[TRACEBACK] += trouble
            if code != -signal.SIGKILL:
                found[TOO_LATE] += 1
                break
            found[KILLED] += 1
        code, out, err = _run(victim, here)
        found[TRACEBACK] += "Traceback" in err
        if _gives(victim, here, code, out, err) != right:
            found[LOST] += 1
            print(f"{LOST}: {victim.name}: exit code {code}\n{out}{err}", flush=True)
        if left := _litter(here):
            found[LITTER] += len(left)
            print(f"{LITTER}: {victim.name}: {', '.join(map(str, left))}", flush=True)
        shutil.rmtree(here)
    return found


def _run(
    victim: Victim, folder: Path, kill_after: float | None = None, killed: Sequence[int] = (0,)
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command in forks of this process, of which those of some ranks are killed."""
    use_roots(folder)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    children = [_fork(victim, folder, rank, port) for rank in range(victim.processes)]
    helpers: list[int] = []
    if kill_after is not None:
        time.sleep(kill_after)
        for rank in killed:
            helpers += descendants_of(children[rank])
            os.kill(children[rank], signal.SIGKILL)
    hung = _end_those_that_hang(children)
    _let_end(helpers)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    out, err = (
        "".join(path.read_text() for rank in range(victim.processes) if (path := folder / f"{name}{rank}").exists())
        for name in ("out", "err")
    )
    err += f"\n{HUNG}: {hung}" if hung else ""
    return -signal.SIGKILL if -signal.SIGKILL in codes else max(codes), out, err


def _end_those_that_hang(children: Sequence[int]) -> int:
    """How many were still there after `PATIENCE`; each of them first writes to stderr where its threads are."""
    try:
        wait_until(lambda: all(map(is_gone, children)), PATIENCE)
    except AssertionError:
        hanging = [child for child in children if not is_gone(child)]
        for number in (signal.SIGUSR1, signal.SIGKILL):
            for child in hanging:
                os.kill(child, number)
            time.sleep(1)
        return len(hanging)
    return 0


def _let_end(helpers: Sequence[int]) -> None:
    """Workers end their step within `GRACE`; those of joblib that have none yet would wait minutes for one."""
    with suppress(AssertionError):
        wait_until(lambda: all(map(is_gone, helpers)), 2 * GRACE)
    for helper in helpers:
        with suppress(ProcessLookupError):
            os.kill(helper, signal.SIGKILL)


def _fork(victim: Victim, folder: Path, rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        for name, descriptor in (("out", 1), ("err", 2)):
            path = folder / f"{name}{rank}"
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        if victim.processes > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(victim.processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        faulthandler.register(signal.SIGUSR1, file=2)
        code = main([*victim.words, "--json"])
    except SystemExit as told:
        code = told.code if isinstance(told.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _gives(victim: Victim, folder: Path, code: int, out: str, err: str) -> Any:
    if code:
        return f"exit code {code}: {out}{err}"
    return victim.gives(folder, json.loads(out))


def _litter(folder: Path) -> list[Path]:
    """Temporary files and folders that should have been swept, but for those of the system's own folder."""
    hidden = (path for path in folder.rglob(".*") if folder / "tmp" not in path.parents)
    return [
        path for path in hidden if path.suffix == ".tmp" or path.name.startswith((".writing-", ".making-", ".ablate-"))
    ]


# ---- the victims -----------------------------------------------------------------------------------------------------


def _victims() -> list[Victim]:
    return [
        Victim("train", ["train", *TRAINING], _training, _check_runs),
        Victim("train, cold", ["train", *TRAINING], _training, _check_runs, cold=True),
        Victim("train, two processes", ["train", *TRAINING], _training, _check_runs, processes=2),
        Victim("train, two in shards", ["train", *TRAINING, *SHARDED], _training, _check_runs, processes=2),
        Victim("ablate, joblib", ["ablate", *TRAINING, "seed=0,1", *SIDE_BY_SIDE], _trainings, _check_runs),
        Victim("prepare", ["data", "prepare", "c4", *DATA[1:]], lambda folder, answer: _without_path(answer), _nothing),
        Victim("reproduce", REPRODUCTION, _records, _check_records),
        Victim("reproduce, jobs=2", [*REPRODUCTION, "jobs=2"], _records, _check_records),
        Victim("report", ["report"], lambda folder, answer: _files(folder), _check_report, _begin_report),
    ]


def _nothing(folder: Path) -> None:
    """Half-prepared data has no name that a command reads."""


def _runs(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "runs").glob("*") if path.is_dir())


def _training(folder: Path, answer: dict[str, Any]) -> Any:
    (run,) = _runs(folder)
    return {key: answer[key] for key in ("hash", "step", "metrics", "weights_sha256")}, read_metrics(run)


def _trainings(folder: Path, answer: dict[str, Any]) -> Any:
    results = [read_result(run) for run in _runs(folder)]
    assert all(results)
    return [(r["hash"], r["step"], r["metrics"], r["weights_sha256"]) for r in results if r]


def _check_runs(folder: Path) -> None:
    for run in _runs(folder):
        read_config(run)
        read_result(run)
        read_metrics(run)


def _without_path(answer: dict[str, Any]) -> Any:
    return [{key: value for key, value in row.items() if key != "path"} for row in answer["data"]]


def _records(folder: Path, answer: dict[str, Any]) -> Any:
    assert answer["items"][0]["failed"] == 0, answer
    _check_records(folder)
    found = RecordStore().read_all(ITEM)
    return [(r.row, r.seed, r.hash, r.metrics, r.first_losses, r.curve, r.data) for r in found]


def _check_records(folder: Path) -> None:
    for error in RecordStore().damaged([ITEM]):
        raise error
    _check_runs(folder)


def _begin_report(folder: Path) -> None:
    """An older report, and the committed records of two items."""
    source = Path(__file__).parents[2] / "results" / "records"
    for item in ("reformer/figure1", "reformer/figure5b"):
        shutil.copytree(source / item, folder / "results" / "records" / item)
    (folder / "results" / "report").mkdir()
    for name in ("README.md", "index.html", "reformer-figure1.csv", "reformer-figure1.md", "gone.md"):
        (folder / "results" / "report" / name).write_text("old")


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "results" / "report").iterdir())}


def _check_report(folder: Path) -> None:
    right = _files(folder.parent / "reference")
    for name, data in _files(folder).items():
        if not name.startswith(".") and data not in (b"old", right.get(name)):
            raise DamagedFileError(folder / "results" / "report" / name, "it is neither the old file nor the new one")
    for error in RecordStore().damaged(load_experiments()):
        raise error

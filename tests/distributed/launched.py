"""Starts the processes of a training: `torchrun` as a user does, or a few that train one case after another."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from efftx.config.compose import compose
from efftx.distributed.processes import ALONE, Processes, joined
from efftx.errors import Interrupted
from efftx.training import loop

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def command(words: Sequence[str], processes: int = 2) -> list[str]:
    """`torchrun ... -m efftx train WORDS`."""
    started = [*TORCHRUN, f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    return [*started, "-m", "efftx", "train", *words]


def torchrun(
    words: Sequence[str], processes: int = 2, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, **(environment or {})}
    return subprocess.run(command(words, processes), env=given, capture_output=True, text=True, timeout=240)


def train_all(
    cases: Mapping[str, Sequence[str]], folder: Path, processes: int = 2, stop_at: int = 0
) -> dict[str, dict[str, Any]]:
    """The results of trainings with these overrides, each in `folder/<name>`, by as many processes, or by this one.

    `stop_at`: SIGTERM reaches the last process, and no other, at the end of this step; the result is then what it says.
    """
    if processes == 1:
        with _stopped_at(stop_at):
            return {name: _result(words, folder / name, ALONE) for name, words in cases.items()}
    given = (dict(cases), str(folder), processes, free_port(), stop_at)
    torch.multiprocessing.spawn(_work, given, nprocs=processes)
    return json.loads((folder / "results.json").read_text())


def _work(rank: int, cases: Mapping[str, Sequence[str]], folder: str, count: int, port: int, stop_at: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined() as processes, _stopped_at(stop_at if rank == count - 1 else 0):
        found = {name: _result(words, Path(folder) / name, processes) for name, words in cases.items()}
        assert all(told == found for told in processes.gather(found)), "all processes have the same result"
        if processes.leads:
            (Path(folder) / "results.json").write_text(json.dumps(found))


@contextmanager
def _stopped_at(step: int) -> Iterator[None]:
    honest = loop.Progress.update

    def update(self: loop.Progress, at: int, *given: Any) -> None:
        honest(self, at, *given)
        if at == step:
            signal.raise_signal(signal.SIGTERM)

    loop.Progress.update = update
    try:
        yield
    finally:
        loop.Progress.update = honest


def _result(words: Sequence[str], run: Path, processes: Processes) -> dict[str, Any]:
    try:
        result = loop.train(compose(words), run, silent=True, processes=processes)
    except Interrupted as event:
        return {"stopped": event.message, "exit_code": event.exit_code}
    return {
        "step": result.step,
        "metrics": result.metrics,
        "curve": result.curve,
        "weights": result.weights_sha256,
        "resumed_from": result.resumed_from,
    }

"""When a checkpoint is written: at once, or by a thread beside the training, which is waited for before an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from efftx.config.settings import CheckpointConfig
from efftx.core.memory import allocating
from efftx.distributed.processes import Processes, other_group
from efftx.runs.checkpoint import save_checkpoint, save_meta
from efftx.runs.optimizer_state import OptimizerState
from efftx.runs.run_directory import FollowedRun, RunDirectory

_LESS = "a smaller d_model or a smaller n_layers"


class Saver:
    """Writes the checkpoints of a run, as a context manager; all processes of a training call it alike.

    With `config.asynchronous` a checkpoint is written from the tensors themselves, not from copies, while the next
    gradients are computed. So whoever changes these tensors calls `finish` before, and gets there what went wrong.
    """

    def __init__(self, run: RunDirectory | FollowedRun, config: CheckpointConfig, processes: Processes) -> None:
        self.run = run
        self.processes = processes
        self._keep = config.keep
        self._thread = ThreadPoolExecutor(1, "checkpoint") if config.asynchronous else None
        self._own = other_group(processes) if config.asynchronous else processes
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown()  # what is being written is whole before the run's lock goes
        if error is None:
            self.finish()

    def save(self, step: int, model: Mapping[str, Tensor], optimizer: OptimizerState, meta: dict[str, Any]) -> None:
        """Writes the checkpoint of `step`, or begins to."""

        def write() -> None:
            what = f"a copy of the weights and optimiser state of step {step} for its checkpoint"
            with allocating(what, _LESS, begun=True):
                save_checkpoint(
                    self.run.checkpoints, step, model, optimizer, meta, keep=self._keep, processes=self._own
                )

        self._do(write)

    def save_meta(self, step: int, meta: dict[str, Any]) -> None:
        """Gives the checkpoint of `step` another meta, once it is written."""
        self._do(lambda: save_meta(self.run.checkpoints, step, meta, keep=self._keep, processes=self._own))

    def finish(self) -> None:
        """Waits for what is being written; raises what went wrong there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _do(self, work: Callable[[], None]) -> None:
        self.finish()
        if self._thread is None:
            work()
        else:
            self._writing = self._thread.submit(work)

"""The processes of one training, as `torchrun` starts them: their ranks, what they agree on, and how they end."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from math import gcd
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from efftx.core.ranks import n_processes
from efftx.errors import Interrupted, UserError

LONGEST_MEETING = timedelta(minutes=10)
"""Until all have connected to each other: one that ends before that cannot be noticed."""
LONGEST_WAIT = timedelta(hours=12)
"""For one that evaluates generated text alone; one that is gone is noticed at once, by its closed connection."""

_GONE = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out|wait timeout|remote process", re.IGNORECASE
)
_STARTED_BY = "Start it with torchrun --nproc-per-node=N -m efftx train ..., or unset WORLD_SIZE."

T = TypeVar("T")


class LostProcessError(UserError):
    """Another process of the training has ended. Exit code 1."""

    exit_code = 1


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them: `rank` of `count`, `here` of them on this machine.

    What they tell each other goes through `group`, whose tensors are on the CPU. Every method is called by all of them
    in the same order; with one process each gives back what it is given.
    """

    rank: int = 0
    count: int = 1
    here: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes and shows what is written and shown once."""
        return self.rank == 0

    def totals(self, *values: float) -> list[float]:
        """The sums of each value over the processes, in float64 and in the order of ranks: the same bits in all."""
        if self.count == 1:
            return list(values)
        mine = torch.tensor(values, dtype=torch.float64)
        of_all = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(of_all, mine, group=self.group)
        return torch.stack(of_all).sum(0).tolist()

    def highest(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.count == 1:
            return value
        maximum = torch.tensor(value)
        dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self.group)
        return int(maximum)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.count == 1:
            return [value]
        values: list[T | None] = [None] * self.count
        dist.all_gather_object(values, value, group=self.group)
        return values  # type: ignore[return-value]

    def of_leader(self, value: T) -> T:
        """The leader's value."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A UserError in one process becomes one in all of them, with the rank that it came from; no calls inside."""
        error: UserError | None = None
        try:
            yield
        except UserError as own:
            if self.count == 1:
                raise
            error = own
        own_failure = None if error is None else (error.kind, error.message, error.hint, error.exit_code)
        for rank, failure in enumerate(self.gather(own_failure)):
            if failure is not None:
                kind, message, hint, exit_code = failure
                where = "" if rank == 0 else f"Process {rank} of {self.count}: "
                everywhere = UserError(kind, f"{where}{message}", hint, common=True)
                everywhere.exit_code = exit_code
                raise everywhere from error

    def led(self, work: Callable[[], T]) -> T:
        """What `work` gives, or raises, in the leader, which alone does it."""
        result: T | None = None
        with self.together():
            if self.leads:
                result = work()
        return self.of_leader(result)  # type: ignore[return-value]


ALONE = Processes()


def cut_for(rows: int, accumulation: int, count: int) -> int:
    """Into how many each micro-batch of `rows` is cut, so that all processes have as many; UserError where none is."""
    cut = count // gcd(count, accumulation)
    if rows % cut:
        message = f"{count} processes cannot share {accumulation} micro-batches of {rows} rows evenly."
        hint = f"training.batch_size={rows} times training.accumulation={accumulation} wants {count} parts."
        raise UserError("distributed", message, hint)
    return cut


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that `torchrun` started together, this one among them; ALONE where it started none beside it.

    Where there are GPUs each has that of its number on its machine. What all of them know, the leader alone tells: the
    others end with its exit code. UserError where they cannot meet; LostProcessError where one of them has ended.
    """
    count = n_processes()
    if count == 1:
        yield ALONE
        return
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if lacking:
        message = f"WORLD_SIZE={count} says that {count} processes were started, and {lacking[0]} is not set."
        raise UserError("distributed", message, _STARTED_BY)
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=LONGEST_MEETING)
        group = _new_group()
        _set_pg_timeout(LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        message = f"The {count} processes do not meet at {os.environ['MASTER_ADDR']}: {why}"
        raise UserError("distributed", message, _STARTED_BY) from error
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    processes = Processes(dist.get_rank(), count, int(here) if here.isdecimal() else count, group)
    try:
        yield processes
    except (UserError, Interrupted) as error:
        if error.common and not processes.leads:
            raise SystemExit(error.exit_code) from error
        raise
    except RuntimeError as error:
        if not _GONE.search(str(error)):
            raise
        message = f"Process {processes.rank} of {count}: another process of this training has ended or is out of reach."
        hint = "What it says itself tells why; the same command goes on from the last checkpoint, which is whole."
        raise LostProcessError("lost_process", message, hint) from error
    finally:
        dist.destroy_process_group()


@contextmanager
def group_of_one() -> Iterator[None]:
    """A process that trains alone as the only one of a group, as FSDP wants it."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def other_group(processes: Processes) -> Processes:
    """The same processes with a group of their own, for what they say from another thread."""
    if processes.count == 1:
        return processes
    return Processes(processes.rank, processes.count, processes.here, _new_group())


def _new_group() -> dist.ProcessGroup:
    """A group of all on their CPUs, made by all at once."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=LONGEST_MEETING)
    _set_pg_timeout(LONGEST_WAIT, group)
    return group

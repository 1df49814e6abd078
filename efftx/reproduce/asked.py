"""What `efftx reproduce` is asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """What is run of some items at one size.

    seeds    in place of the items' own.
    stale    run again what no longer comes out, too.
    verify   run nothing, replay each record's first three steps, count `fresh`, `stale`, `not replayable` and
             `not at hand` (its data or its device); with `stale`: then run again what that showed.
    part     (k, n): of the records to verify every n-th, from the k-th on, counted over all experiments.
    yes      needed at size paper where the price of what is left to run is above 24 hours.
    jobs     so many trainings side by side, each in a process of its own; measures always run alone, one at a time.
    tracker  overrides such as tracker.wandb=true, of which records know nothing.
    swept    only the runs of the sweeps at this value.
    """

    size: str
    seeds: list[int] | None = None
    stale: bool = False
    verify: bool = False
    part: tuple[int, int] = (1, 1)
    yes: bool = False
    jobs: int = 1
    tracker: Sequence[str] = ()
    swept: float | None = None

"""What a run shows while it runs, a progress bar or lines, and how it is stopped."""

import datetime
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from efftx.core.work import Work, current_work
from efftx.errors import EXIT_INTERRUPTED, EXIT_TERMINATED

BAR, LEAST_NAME, ROOMY = 10, 20, 60
"""Characters of the bar; the fewest of the name; from how many beside both on the loss has its unit."""


class Progress:
    """Progress of a training on stderr: a bar on a terminal, a line every `interval` seconds in a pipe, or nothing.

    Names what runs (`core.work`, else `label`) and which run of how many it is; shows step, loss in the paper's `unit`,
    tokens/s over the last steps, memory (of `device`) and the time left, of these as many as the terminal is wide.
    `start` is the step a resumed run goes on from. In a pipe no two lines of a process are less than `interval` apart,
    whatever it trains meanwhile; notes are told at once.
    """

    _printed_at: ClassVar[float] = -math.inf

    def __init__(
        self,
        total: int,
        *,
        unit: str,
        start: int = 0,
        label: str = "train",
        device: torch.device | None = None,
        silent: bool = False,
        stream: TextIO | None = None,
        interval: float = 10.0,
    ) -> None:
        self._total, self._unit = total, unit
        self._work = current_work() or Work(label)
        self._device, self._silent, self._interval = device, silent, interval
        self._stream = stream if stream is not None else sys.stderr
        self._window: deque[tuple[float, int, int]] = deque(maxlen=50)  # (seconds, step, tokens so far)
        self._window.append((time.monotonic(), start, 0))
        self._tokens = 0
        self._validated = ""
        self._bar: RichProgress | None = None
        if self._stream.isatty() and not silent:
            columns = (
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
                BarColumn(bar_width=BAR),
                TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
            )
            self._bar = RichProgress(*columns, console=Console(file=self._stream), refresh_per_second=4)
            self._task = self._bar.add_task(str(self._work), total=total, completed=start, text=f"{start}/{total}")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, loss: float, tokens: int) -> None:
        """Show that `step` is done, with its loss in the paper's unit, after `tokens` more tokens."""
        self._tokens += tokens
        now = time.monotonic()
        self._window.append((now, step, self._tokens))
        if self._silent:
            return
        if self._bar is not None:
            width = self._bar.console.width - BAR - 2
            name = self._name(width - len("  ".join(self._parts(step, loss, 0)[:3])))
            text = "  ".join(self._parts(step, loss, width - len(name)))
            self._bar.update(self._task, description=name, completed=step, text=text)
        elif self._is_due():
            self._print("  ".join([str(self._work), *self._parts(step, loss, None)]))
            self._validated = ""

    def validated(self, step: int, message: str) -> None:
        """Show what a validation gave: above the bar at once, in a pipe with the next line."""
        self._validated = f"valid {message} at step {step}"
        if self._bar is not None:
            self.note(f"step {step}: valid {message}")

    def doing(self, what: str) -> None:
        """Say what is done between steps (`validating`), where the bar says the time left."""
        step = self._window[-1][1]
        if self._bar is not None:
            self._bar.update(self._task, text=f"{step}/{self._total}  {what}")
        elif not self._silent and self._is_due():
            self._print(f"{self._work}  {step}/{self._total}  {what}")

    def note(self, text: str) -> None:
        """Show one line of text above the bar, or between the lines."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._print(text)

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second over the last fifty steps; 0 before the first."""
        (first, _, before), (last, _, after) = self._window[0], self._window[-1]
        return (after - before) / (last - first) if last > first else 0.0

    def _is_due(self) -> bool:
        """Whether a pipe gets a line again; if so, its interval begins."""
        now = time.monotonic()
        due = now - Progress._printed_at >= self._interval
        if due:
            Progress._printed_at = now
        return due

    def _name(self, room: int) -> str:
        """What runs, in about `room` characters: its place among the runs stays, its name gives way."""
        place = f" {self._work.place}".rstrip()
        room = max(LEAST_NAME, room) - len(place)
        name = self._work.name
        return (name if len(name) <= room else f"{name[: room - 1]}…") + place

    def _parts(self, step: int, loss: float, width: int | None) -> list[str]:
        """Step, loss, time left, and before that what else fits into `width` (None: all); the loss may have to go."""
        (first, first_step, _), (last, last_step, _) = self._window[0], self._window[-1]
        left = (self._total - step) * (last - first) / (last_step - first_step) if last_step > first_step else 0.0
        begin, end = f"{step}/{self._total}", f"ETA {datetime.timedelta(seconds=round(left))}"
        loss_text = f"loss {loss:z.4f}" + (f" {self._unit}" if width is None or width >= ROOMY else "")
        if width is not None and 0 < width < len(f"{begin}  {loss_text}  {end}"):
            return [begin, end]
        shown = [begin, loss_text]
        for part in (
            f"{self.tokens_per_second:,.0f} tokens/s",
            f"{memory_bytes(self._device) / 2**20:,.0f} MiB",
            *([self._validated] if self._validated and width is None else []),
        ):
            if width is not None and len("  ".join([*shown, part, end])) > width:
                break
            shown.append(part)
        return [*shown, end]

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


def memory_bytes(device: torch.device | None = None) -> int:
    """Memory in use: allocated by PyTorch on a GPU, else resident in this process (0 where that cannot be read)."""
    if device is not None and device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


class StopRequest:
    """Turns SIGTERM and the first Ctrl-C into a request that the loop honours at its next step, as a context manager.

    `exit_code` is None until asked, then 143 (SIGTERM) or 130 (SIGINT); `asked` says whether. A Ctrl-C after a request
    raises KeyboardInterrupt at once; further SIGTERMs change nothing. Outside the main thread, where Python delivers no
    signals, it only never asks.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether the run shall stop at the next step's end."""
        return self.exit_code is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: the handler was not set from Python
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            self.exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED
            if number == signal.SIGINT and sys.stderr.isatty():
                # Not print: the signal may have come in the middle of one.
                os.write(sys.stderr.fileno(), b"\nstopping at the end of this step; Ctrl-C again stops at once\n")

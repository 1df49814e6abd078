"""What a run shows while it runs, a progress bar or lines, and how it is stopped."""

import datetime
import os
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from efftx.errors import EXIT_INTERRUPTED, EXIT_TERMINATED


class Progress:
    """Progress of a training on stderr: a bar on a terminal, a line every `interval` seconds in a pipe, or nothing.

    Shows the loss in the paper's `unit`, tokens/s over the last steps, memory (of `device`) and the time left.
    `start` is the step a resumed run goes on from.
    """

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
        self._total, self._unit, self._label = total, unit, label
        self._device, self._silent, self._interval = device, silent, interval
        self._stream = stream if stream is not None else sys.stderr
        self._window: deque[tuple[float, int, int]] = deque(maxlen=50)  # (seconds, step, tokens so far)
        self._window.append((time.monotonic(), start, 0))
        self._tokens = 0
        self._printed_at: float | None = None
        self._bar: RichProgress | None = None
        if self._stream.isatty() and not silent:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}", markup=False),
            )
            self._bar = RichProgress(*columns, console=Console(file=self._stream), refresh_per_second=4)
            self._task = self._bar.add_task(label, total=total, completed=start, text=f"{start}/{total}")

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
            self._bar.update(self._task, completed=step, text=self._text(step, loss))
        elif self._printed_at is None or now - self._printed_at >= self._interval or step == self._total:
            self._printed_at = now
            self._print(f"{self._label} {self._text(step, loss)}")

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

    def _text(self, step: int, loss: float) -> str:
        (first, first_step, _), (last, last_step, _) = self._window[0], self._window[-1]
        left = (self._total - step) * (last - first) / (last_step - first_step) if last_step > first_step else 0.0
        eta = datetime.timedelta(seconds=round(left))
        memory = memory_bytes(self._device) / 2**20
        return (
            f"{step}/{self._total}  loss {loss:.4f} {self._unit}  "
            f"{self.tokens_per_second:,.0f} tokens/s  {memory:,.0f} MiB  ETA {eta}"
        )

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

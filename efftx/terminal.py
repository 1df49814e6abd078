"""What the commands print for people: trainings, ablations, samples, data sets and the list of items."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from efftx.core.counts import count
from efftx.core.durations import SPREAD, duration
from efftx.core.grid import Column, Grid, print_text
from efftx.core.visible import visible
from efftx.evaluation.metrics import heading, shown

if TYPE_CHECKING:
    from efftx.sampling.sample import Given, Samples
    from efftx.sampling.trained import Trained
    from efftx.training.loop import TrainResult

STATE_STYLES = {
    "done": "green",
    "skipped": "cyan",
    "failed": "red",
    "recorded": "green",
    "verified": "green",
    "prepared": "green",
    "stale": "yellow",
    "partial": "yellow",
    "damaged": "red",
}


def show_reproduced(lines: Sequence[Mapping[str, Any]], console: Console) -> None:
    """One line: what was run, what stood recorded already, what failed; of a verification what its replays gave."""
    counted = {"run": "ran", "recorded already": "skipped", "failed": "failed"}
    words = ("fresh", "stale", "not replayable", "not at hand")
    counted |= {word: word for word in words if any(word in line for line in lines)}
    totals = {word: sum(line.get(key, 0) for line in lines) for word, key in counted.items()}
    counts = ", ".join(f"{count} {word}" for word, count in totals.items())
    replayed = "fresh" in totals
    console.print(f"Rows and seeds: {counts}.", highlight=False)
    if replayed:
        console.print("`efftx report` writes what the replays gave into the report.", highlight=False)


def show_training(result: TrainResult, console: Console) -> None:
    """The final metrics of a training, its speed, and where it lives."""
    table = Grid([Column(""), Column("")], header=False)
    for name, value in shown(result.metrics).items():
        table.row(Text(heading(name), style="bold"), Text(f"{value:z.4f}", style="bold"))
    table.row("steps", f"{result.step:,}{_resumed(result)}")
    table.row("training time", duration(result.timings["train_seconds"]))
    table.row("tokens/s", f"{result.timings['tokens_per_second']:,.0f}")
    if "decode_ms" in result.timings:
        table.row("decoding", f"{result.timings['decode_ms']:.2f} ms a token{_told_of_decoding(result.timings)}")
    table.row("data", f"{result.data['variant']}, test split")
    table.row("weights", f"sha256 {result.weights_sha256[:16]}")
    table.row("run", str(result.run))
    table.print(console)


def _resumed(result: TrainResult) -> str:
    if result.resumed_from is None:
        return ""
    return ", done before" if result.resumed_from == result.step else f", resumed at {result.resumed_from:,}"


def _told_of_decoding(timings: Mapping[str, float]) -> str:
    """The share of the read bandwidth, and whether the machine was too busy for a number."""
    share = timings.get("decode_bandwidth_share", 0.0)
    percent = f"{share:.0%}" if share >= 0.1 else f"{share:.2%}"
    rate = ", out of the cache" if share > 1 else f", {percent} of the read bandwidth" if share else ""
    uneven = timings.get("decode_spread", 1.0) > SPREAD
    return rate + ("; uneven: was the machine busy?" if uneven else "")


def show_ablation(runs: Sequence[Mapping[str, Any]], keys: Sequence[str], console: Console) -> None:
    """The varied keys against the metrics, one line a run; then what failed, and why."""
    metrics = list(dict.fromkeys(name for run in runs for name in shown(run["metrics"])))
    sizes, speeds = ("parameters", "parameters against dense"), ("tokens/s", "ms a decoded token")
    numbers = [*(heading(name) for name in metrics), *sizes, *speeds]
    columns = [*map(Column, keys), *(Column(name, numbers=True) for name in numbers), Column("state"), Column("run")]
    table = Grid(columns, n_names=len(keys))
    for run in runs:
        chosen = dict(word.split("=", 1) for word in run["overrides"])
        style = STATE_STYLES[run["state"]]
        table.row(
            *(chosen.get(key, "") for key in keys),
            *(f"{run['metrics'][name]:z.4f}" if name in run["metrics"] else "–" for name in metrics),
            f"{run['parameters']:,}",
            f"{run['parameters_against_dense'] - 1:+z.1%}",
            f"{run['timings']['tokens_per_second']:,.0f}" if run["timings"] else "–",
            f"{run['timings']['decode_ms']:.2f}" if "decode_ms" in run["timings"] else "–",
            Text(run["state"], style=style),
            run["run"],
        )
    table.print(console)
    for run in runs:
        if run["error"]:
            console.print(f"{' '.join(run['overrides'])}: {run['error']}", style="red", markup=False)


def text_stream(trained: Trained, given: Given) -> Callable[[str], None]:
    """Writes text to stdout as it comes, after the prompt that a language model goes on from."""
    console = Console()
    if trained.is_language_model:
        _write(console, given.text, style="dim")
    return lambda text: _write(console, text)


def show_samples(samples: Samples, console: Console, *, streamed: bool) -> None:
    """The samples one after another, or the files that hold them; of a streamed text, which is there already, the end
    of its line."""
    if samples.files:
        for path in samples.files:
            _write(console, f"{path}\n")
        return
    if streamed:
        console.print()
        return
    for number, sample in enumerate(samples.samples, 1):
        score = "" if sample.score is None else f", score {sample.score:z.3f}"
        head = f"{number} of {len(samples.samples)}: log-probability {sample.log_probability:z.3f} nats{score}"
        console.print(head, style="cyan", highlight=False)
        if samples.trained.is_language_model:
            _write(console, samples.given.text, style="dim")
        _write(console, sample.text + "\n")


@contextlib.contextmanager
def generation_bar(total: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """A bar on stderr, where that is a terminal, which each call of what is given moves on by one of `total`."""
    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task("sample", total=total)
        yield lambda: progress.advance(task)


def _write(console: Console, text: str, style: str | None = None) -> None:
    """Text as it is, neither wrapped nor marked up, in what characters the terminal has."""
    encoding = console.encoding
    console.out(visible(text).encode(encoding, "replace").decode(encoding), end="", style=style, highlight=False)


def show_data(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The data sets in one table that fits 80 columns, and where what is prepared lies."""
    names = [Column("name"), Column("state"), Column("MB", numbers=True), Column("SHA-256"), Column("variant")]
    table = Grid(names)
    for row in rows:
        state = row["state"] + (f": {row['why']}" if row.get("why") else "")
        table.row(
            row["name"],
            Text(state, style=STATE_STYLES.get(row["state"], "")),
            f"{row['bytes'] / 1e6:,.2f}" if row["bytes"] else "–",
            (row["sha256"] or "–")[:12],
            row["variant"] or "–",
        )
    table.print(console)
    for folder in dict.fromkeys(str(Path(row["path"]).parent) for row in rows if row["path"]):
        print_text(console, f"Prepared, each in NAME-SHA256: {folder}")
    print_text(console, "Licences and whole checksums: --json.")


def show_list(states: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Every item with its state, the sizes that have records (and those at which it can be run), what it shows."""
    table = Grid([Column(heading) for heading in ("item", "state", "recorded (not run)", "shows")])
    for state in states:
        state_text = Text(_state_in_words(state), style=STATE_STYLES.get(state["state"], ""))
        recorded = state["sizes"]
        others = ", ".join(size for size in state.get("runs_at", ()) if size not in recorded)
        sizes = f"{', '.join(recorded) or '–'}{f' ({others})' if others else ''}"
        table.row(state["id"], state_text, sizes, state["caption"])
    table.print(console)


def _state_in_words(state: Mapping[str, Any]) -> str:
    """The state and why; of damaged records their number, for their paths are told apart."""
    if n := len(state.get("damaged", ())):
        return f"{state['state']}; {count(n, 'damaged record')}"
    return state["state"] + (f": {state['why']}" if state.get("why") else "")

"""What the commands print fits the terminal, and is what was measured."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from efftx.commands.outcome import show_error
from efftx.core.lines import say, shortened
from efftx.report.numbers import with_decimals
from efftx.study.experiment import Cell
from efftx.terminal import show_ablation, show_data, show_list, show_training
from efftx.training.loop import TrainResult


def printed(show: Callable[[Console], None], width: int) -> list[str]:
    out = io.StringIO()
    show(Console(file=out, width=width))
    return out.getvalue().split("\n")


def ablated(value: int) -> dict[str, Any]:
    return {
        "overrides": [f"sparse_ff.N={value}"],
        "run": f"/runs/of/a[b]/scaling-stdlib-{value:012d}",
        "hash": "0",
        "state": "done",
        "parameters": 50775,
        "parameters_against_dense": 1.004,
        "metrics": {"log_perplexity": 5.7743, "accuracy": 12.3456, "sequence_accuracy": 0.5, "unit_agreement": 80.8},
        "timings": {"tokens_per_second": 140.0, "decode_ms": 0.2},
        "error": None,
    }


DATA = {
    "name": "c4",
    "variant": "c4[3210+40+30 documents,unigram-2000]",
    "bytes": 123456789,
    "sha256": "0123456789abcdef" * 4,
    "licence": "ODC-BY 1.0; the texts are also under Common Crawl's terms of use",
    "state": "ready",
    "path": "/a/path[b]/to/the/bytes",
}
ITEM = {
    "id": "reformer/table2",
    "state": "stale",
    "why": "[b]LSH-4[/b], seed 0",
    "sizes": ["cpu"],
    "runs_at": ["paper", "cpu", "smoke"],
    "caption": "A caption",
}


@pytest.mark.parametrize(
    ("resumed_from", "timings", "steps", "decoding"),
    [
        (None, {"decode_ms": 2.0}, "6", "2.00 ms a token"),
        (4, {"decode_ms": 0.1, "decode_bandwidth_share": 1.5}, "6, resumed at 4", "0.10 ms a token, out of the cache"),
        (
            6,
            {"decode_ms": 231.0, "decode_bandwidth_share": 0.0004, "decode_spread": 2.5},
            "6, done before",
            "231.00 ms a token, 0.04% of the read bandwidth; uneven: was the machine busy?",
        ),
    ],
)
def test_a_training_says_where_it_began_and_whether_its_latency_is_to_be_trusted(
    resumed_from: int | None, timings: dict[str, float], steps: str, decoding: str
) -> None:
    timed = {"train_seconds": 1.0, "tokens_per_second": 10.0, **timings}
    result = TrainResult(Path("run"), "0", 6, resumed_from, {}, timed, "0" * 64, [], [], {"variant": "v"})
    lines = [line.split(maxsplit=1) for line in printed(lambda console: show_training(result, console), 120)]
    told = dict(line for line in lines if len(line) == 2)
    assert (told["steps"].strip(), told["decoding"].strip()) == (steps, decoding)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    ("show", "words"),
    [
        (
            lambda console: show_ablation([ablated(0), ablated(64)], ["sparse_ff.N"], console),
            ["5.7743", "12.3456", "80.8000", "/runs/of/a[b]/scaling-stdlib-000000000064", "140", "0.20", "done"],
        ),
        (
            lambda console: show_data([DATA], console),
            ["123.46", "0123456789ab", "c4[3210+40+30", "documents,unigram-2000]", "/a/path[b]/to/the"],
        ),
        (
            lambda console: show_list([ITEM], console),
            ["reformer/table2", "stale:", "[b]LSH-4[/b],", "(paper,", "smoke)", "caption"],
        ),
    ],
    ids=["ablate", "data", "list"],
)
def test_tables_fit_and_break_no_word(show: Callable[[Console], None], words: list[str], width: int) -> None:
    lines = printed(show, width)
    assert all(cell_len(line) <= width for line in lines)
    told = " ".join(lines).split()
    assert set(words) <= set(told)


def test_data_sets_are_one_table_in_eighty_columns() -> None:
    widest = {**DATA, "name": "summarization", "state": "needs no file", "bytes": 16_357_380_096}
    lines = printed(lambda console: show_data([DATA, widest], console), 80)
    assert len([line for line in lines if line.startswith("name ")]) == 1


def test_a_damaged_record_is_counted_in_the_list_and_its_path_is_not_told_there() -> None:
    path = "/somewhere/results/records/reformer/table2/cpu/lsh-4-seed0.json"
    damaged = {**ITEM, "state": "partial", "why": f"{path}: it was changed", "damaged": [f"{path}: it was changed"]}
    told = " ".join(printed(lambda console: show_list([damaged], console), 120))
    assert "partial; 1 damaged record" in told
    assert path not in told


def test_an_item_that_was_never_run_says_at_which_sizes_it_runs() -> None:
    fresh = {**ITEM, "state": "not run", "why": "", "sizes": []}
    lines = printed(lambda console: show_list([fresh], console), 120)
    assert "not run  – (paper, cpu, smoke)  A caption" in lines[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "widest"), [(Terminal, 40), (io.StringIO, 200)])
def test_errors_hints_and_notes_break_on_a_terminal_and_stay_whole_in_a_pipe(
    stream: type[io.StringIO], widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stderr", err := stream())
    show_error("word " * 15 + "end.", "hint " * 15 + "end.")
    say("note " * 15 + "end.")
    lines = err.getvalue().splitlines()
    assert max(map(len, lines)) <= widest
    assert (len(lines) == 3) == (stream is io.StringIO)
    assert [line[:7] for line in lines if "note" not in line and not line.startswith("efftx:")] == [" " * 7] * (
        sum("note" not in line for line in lines) - 1
    )


def test_a_line_of_progress_loses_what_is_least_useful_and_never_breaks() -> None:
    line = "LSH-4, seed 0  12/300  loss 2.3456 nats/token  1,234 tokens/s  500 MiB  ETA 0:01:00"
    assert shortened(line, 100) == line
    assert shortened(line, 70) == "LSH-4, seed 0  12/300  loss 2.3456 nats/token  ETA 0:01:00"
    assert shortened(line, 40) == "LSH-4, seed 0  12/300  ETA 0:01:00"
    assert shortened(line, 10) == "LSH-4, se…"


def test_what_rounds_to_zero_has_no_minus_sign() -> None:
    run = {**ablated(0), "parameters_against_dense": 0.9999, "metrics": {"accuracy": -0.00001}}
    told = "\n".join(printed(lambda console: show_ablation([run], [], console), 200))
    assert {"0.0000", "+0.0%"} <= set(told.split())
    assert "-0." not in told
    assert [Cell("", format=form).write(-0.001) for form in ("{:.2f}", "{:+.1f}", "{:.0e}")] == [
        "0.00",
        "+0.0",
        "-1e-03",
    ]
    assert with_decimals(-0.0001, 2) == "0.00"

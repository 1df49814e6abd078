from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from efftx.core.grid import Column, Grid, print_text, wrapped
from efftx.report.show import print_item
from efftx.study.experiment import Experiment
from efftx.study.experiments import load_experiments

EXPERIMENTS = load_experiments()


def text_of(grid: Grid, width: int) -> str:
    return "\n".join(line.plain for line in grid.lines(width))


def small() -> Grid:
    grid = Grid([Column("model"), Column("accuracy", numbers=True), Column("time (s)", numbers=True)])
    grid.section("Measured")
    grid.row("LSH-4", "74.3 ± 0.4", "1.25")
    grid.row("Full", "100.0 ± 0.0", "12.50")
    return grid


def test_what_fits_is_one_table_with_numbers_to_the_right() -> None:
    assert text_of(small(), 80).split("\n") == [
        "model     accuracy  time (s)",
        "────────────────────────────",
        "Measured",
        "LSH-4   74.3 ± 0.4      1.25",
        "Full   100.0 ± 0.0     12.50",
    ]


def test_what_does_not_fit_is_blocks_of_columns_with_the_names_again() -> None:
    assert text_of(small(), 20).split("\n") == [
        "model     accuracy",
        "──────────────────",
        "Measured",
        "LSH-4   74.3 ± 0.4",
        "Full   100.0 ± 0.0",
        "",
        "model  time (s)",
        "───────────────",
        "Measured",
        "LSH-4      1.25",
        "Full      12.50",
    ]


def test_where_no_column_fits_beside_the_names_a_row_is_a_record() -> None:
    assert text_of(small(), 12).split("\n") == [
        "Measured",
        "",
        "LSH-4",
        "  accuracy  74.3 ± 0.4",
        "  time (s)  1.25",
        "",
        "Full",
        "  accuracy  100.0 ± 0.0",
        "  time (s)  12.50",
    ]


def test_a_path_is_written_whole() -> None:
    grid = Grid([Column(""), Column("")], header=False)
    grid.row("steps", "20")
    grid.row("run", "/a/long/path/of/a/run")
    assert text_of(grid, 20).split("\n") == ["steps  20", "run    /a/long/path/of/a/run"]


def test_a_heading_gives_way_before_a_column_does() -> None:
    grid = Grid([Column("model"), Column("speed-up of a block", numbers=True), Column("of the read", numbers=True)])
    grid.row("dense", "1.00", "92")
    assert text_of(grid, 30).split("\n") == [
        "model    speed-up of a  of the",
        "                 block    read",
        "──────────────────────────────",
        "dense             1.00      92",
    ]


def test_a_row_without_values_is_left_out_of_a_block_but_not_of_a_whole_table() -> None:
    grid = Grid([Column("model"), Column("accuracy", numbers=True), Column("seconds", numbers=True)])
    grid.section("Published")
    grid.row("dense", "77.7777", "–")
    assert "dense" in text_of(grid, 80)
    assert text_of(grid, 15).count("dense") == 1
    assert text_of(grid, 15).count("Published") == 1


def test_text_is_shown_as_it_is() -> None:
    grid = Grid([Column("name"), Column("path")])
    grid.row("[b]bold[/b]", "/runs/[red]x")
    assert "[b]bold[/b]  /runs/[red]x" in text_of(grid, 80)


def test_no_name_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    grid = Grid([Column("name"), Column("path")])
    grid.section("\x1b[2J")
    grid.row("\x1b]0;title\x07", Text("\x9b31m", style="red"))
    console = Console(width=80)
    grid.print(console)
    print_text(console, "a\x1b[31mb")
    out = capsys.readouterr().out
    assert not set(out) & {"\x1b", "\x07", "\x9b"}
    assert "␛]0;title␇" in out


def test_a_row_has_a_cell_for_each_column() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Grid([Column("a"), Column("b")]).row("x")


WORDS = st.text("abcdefgh-±.0123456789日", min_size=1, max_size=14)
CELLS = st.lists(WORDS, max_size=5).map(" ".join)


@given(
    width=st.integers(1, 120),
    columns=st.lists(st.tuples(WORDS, st.booleans()), min_size=2, max_size=7),
    n_names=st.integers(1, 2),
    data=st.data(),
)
def test_no_word_is_ever_broken_and_no_line_is_too_wide_but_for_one(width, columns, n_names, data) -> None:
    grid = Grid([Column(heading, numbers) for heading, numbers in columns], n_names=min(n_names, len(columns) - 1))
    rows = [[data.draw(CELLS) for _ in columns] for _ in range(data.draw(st.integers(1, 4)))]
    for row in rows:
        grid.row(*row)
    lines = [line.plain for line in grid.lines(width)]
    shown = Counter(word for line in lines for word in line.split())
    names = grid.n_names
    asked = Counter(word for row in rows for cell in row[names:] for word in cell.split())
    assert not asked - shown
    if grid._blocks(width) is not None:
        widest = max(cell_len(word) for row in rows for cell in row for word in wrapped(cell, 0))
        assert all(cell_len(line) <= max(width, width + widest - 12) for line in lines)
        assert all(cell_len(line) <= width for line in lines if all(n for _, n in columns))


@given(text=st.text("ab 1%±=p\n", max_size=80), width=st.integers(1, 40))
def test_wrapping_keeps_every_word(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert " ".join(lines).split() == text.split()
    assert all(cell_len(line) <= width or not re.search(r"[ab] [ab]", line) for line in lines)


def test_a_number_stays_with_its_sign_and_its_spread() -> None:
    assert wrapped("an interval of 95 % and 3.0 ± 0.1 at p = 0.01", 17) == [
        "an interval of",
        "95 % and",
        "3.0 ± 0.1 at",
        "p = 0.01",
    ]


def test_a_paragraph_hangs(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(Console(width=12), "holds: it is so", hanging=2)
    print_text(Console(width=12), "why it is so", indent=4)
    assert capsys.readouterr().out.split("\n") == ["holds: it is", "  so", "    why it", "    is so", ""]


def test_a_line_that_just_fits_has_none_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(Console(width=12), "holds: it is", hanging=2)
    assert capsys.readouterr().out == "holds: it is\n"


def printed(experiment: Experiment, width: int) -> list[str]:
    out = io.StringIO()
    print_item(experiment, console=Console(file=out, width=width))
    return out.getvalue().split("\n")


@pytest.mark.parametrize("e", EXPERIMENTS.values(), ids=lambda e: e.id)
def test_every_item_reads_at_every_width(e: Experiment) -> None:
    wide = Counter(" ".join(printed(e, 1000)).split())
    for width in (60, 80, 120):
        lines = printed(e, width)
        assert all(cell_len(line) <= width or " " not in line.strip() for line in lines), width
        missing = wide - Counter(" ".join(lines).split())
        assert set(missing) <= {"–", "─" * 3} | {word for word in missing if set(word) == {"─"}}, width


@pytest.mark.parametrize(
    "command", [["report", "scaling/table1"], ["list"], ["plan", "size=cpu", "--on", "h100"], ["data", "list"]]
)
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_pipe_is_as_wide_as_columns_says(command: list[str], columns: int) -> None:
    asked = [sys.executable, "-m", "efftx", *command]
    environment = {**os.environ, "COLUMNS": str(columns), "PYTHONIOENCODING": "utf-8"}
    out = subprocess.run(asked, capture_output=True, text=True, check=True, env=environment, encoding="utf-8").stdout
    for line in out.split("\n"):
        assert cell_len(line) <= columns or re.search(rf"\S{{{columns // 3},}}", line), line

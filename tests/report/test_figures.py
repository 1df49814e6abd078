from __future__ import annotations

import re
from itertools import pairwise

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftx.report import figures
from efftx.report.figures import draw
from efftx.report.plotdata import Line, Plot, Point


def make_plot(n_lines: int = 2, kind: str = "published", **changes: object) -> Plot:
    measured = [
        Line(f"LSH-{i}", "measured", (Point(1024.0, 1.0 + i, 0.1, 3), Point(2048.0, 2.0 + 2 * i, 0.1, 3)))
        for i in range(n_lines)
    ]
    paper = Line("LSH-0", kind, (Point(1024.0, 1.5), Point(2048.0, 1.7)))
    keys = {"caption": "c", "x_label": "length", "y_label": "seconds", "log_x": True, "log_y": True}
    return Plot(lines=(*measured, paper), **{**keys, **changes})  # type: ignore[arg-type]


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert draw(make_plot()) == draw(make_plot())


def test_another_number_gives_another_drawing() -> None:
    assert draw(make_plot(2)) != draw(make_plot(3))


def test_a_users_own_settings_do_not_change_a_drawing() -> None:
    plain = draw(make_plot())
    with matplotlib.rc_context({"lines.linewidth": 9.0, "svg.fonttype": "none", "axes.facecolor": "black"}):
        assert draw(make_plot()) == plain


def test_a_drawing_bears_no_date_and_its_text_is_paths() -> None:
    svg = draw(make_plot())
    assert "<text" not in svg
    assert "<dc:date>" not in svg
    assert not re.search(r"20\d\d-\d\d-\d\d", svg)


def test_text_is_legible_on_a_telephone() -> None:
    assert figures.SMALL / 72 * 350 / figures.WIDTH >= 9.0  # pixels, the smallest text in 350 of them


@pytest.mark.parametrize("n_lines", [1, 7, 12, 13, 40])
def test_no_two_lines_have_the_same_colour(n_lines: int) -> None:
    names = [f"row {i}" for i in range(n_lines)]
    looks = figures.looks_of(names)
    assert list(looks) == names
    assert len({colour.lower() for colour, _ in looks.values()}) == n_lines
    svg = draw(make_plot(n_lines, title="measured"))
    strokes = dict(re.findall(r'<g id="row-(\d+)-measured">\s*<path [^>]*?stroke: (#[0-9a-f]{6})', svg))
    assert len(set(strokes.values())) == len(strokes) == n_lines


def test_a_row_has_its_colour_in_every_panel() -> None:
    colours = {}
    for names in (("LSH-0", "LSH-1", "LSH-2"), ("other", "LSH-0", "LSH-1", "LSH-2")):
        svg = draw(make_plot(3, names=names))
        colours[names] = re.findall(r'<g id="row-\d+-measured">\s*<path [^>]*?stroke: (#[0-9a-f]{6})', svg)
    first, second = colours.values()
    assert first == [colour.lower() for colour in figures.PALETTE[:3]]
    assert second == [colour.lower() for colour in figures.PALETTE[1:4]]


@pytest.mark.parametrize(("log_x", "log_y"), [(False, False), (True, False), (False, True)])
def test_linear_and_logarithmic_axes_differ(log_x: bool, log_y: bool) -> None:
    assert draw(make_plot(log_x=log_x, log_y=log_y)) != draw(make_plot())


def test_the_papers_lines_are_dashed_and_hollow_and_the_measured_are_not() -> None:
    plot = make_plot()
    measured, paper = figures._look(plot, plot.lines[0]), figures._look(plot, plot.lines[-1])
    assert paper["mfc"] == "white"
    assert paper["linestyle"] != "-"
    assert "linestyle" not in measured


def test_an_unverified_reading_is_drawn_with_another_key() -> None:
    assert draw(make_plot(kind="published-unverified")) != draw(make_plot(kind="published"))


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.02, 0.2)), min_size=1, max_size=12).map(
        lambda pairs: sorted(pairs, key=lambda pair: pair[0])
    )
)
def test_names_never_touch_and_keep_their_order(pairs: list[tuple[float, float]]) -> None:
    wanted, heights = [w for w, _ in pairs], [h for _, h in pairs]
    placed = list(zip(figures._apart(wanted, heights), heights, strict=True))
    for (low, low_height), (high, high_height) in pairwise(placed):
        assert low + low_height / 2 <= high - high_height / 2 + 1e-9


def test_a_name_with_room_stays_at_the_end_of_its_line() -> None:
    assert figures._apart([0.1, 0.5, 0.9], [0.05, 0.05, 0.05]) == pytest.approx([0.1, 0.5, 0.9])


def test_names_that_would_touch_share_the_way() -> None:
    assert figures._apart([0.5, 0.5], [0.1, 0.1]) == pytest.approx([0.45, 0.55])


@pytest.mark.parametrize(
    ("x", "written"), [(1024.0, "1K"), (32768.0, "32K"), (1000.0, "1000"), (150000.0, "150k"), (2.5, "2.5")]
)
def test_a_tick_is_written_short(x: float, written: str) -> None:
    assert figures._short(x) == written


@given(st.lists(st.floats(0.02, 0.2), min_size=1, max_size=12), st.data())
def test_names_stay_between_bottom_and_top_where_they_fit(heights: list[float], data: st.DataObject) -> None:
    heights = [height / max(1.0, sum(heights)) for height in heights]
    wanted = sorted(data.draw(st.floats(0, 1)) for _ in heights)
    placed = list(zip(figures._within(figures._apart(wanted, heights), heights), heights, strict=True))
    assert placed[0][0] - placed[0][1] / 2 >= -1e-9
    assert placed[-1][0] + placed[-1][1] / 2 <= 1 + 1e-9
    for (low, low_height), (high, high_height) in pairwise(placed):
        assert low + low_height / 2 <= high - high_height / 2 + 1e-9

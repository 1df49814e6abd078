"""The figure of a trend: every seed as a point, the fit as a line, and in words which way it goes."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from efftx.errors import UserError
from efftx.report.drawings import drawings
from efftx.report.items import gather
from efftx.report.plotdata import to_csv
from efftx.report.show import item_json, print_item
from efftx.report.trends import slope, trend_plots
from efftx.study.experiment import Cell, ColumnSpec, Experiment, Row
from efftx.study.records import Record, RecordStore
from efftx.study.trend import Estimate

TOKENS = {"1M": 1e6, "2M": 2e6, "4M": 4e6}
WIDTHS = (64, 128)
TREND = {"against": "dense", "over": "tokens", "beside": "width"}


def experiment(**trend: str) -> Experiment:
    return Experiment(
        id="scaling/gap",
        caption="The gap",
        kind="train",
        cell=Cell("loss", "nats/token", "lower", "{:.3f}"),
        rows={
            f"{arm}, d {width}": Row(parameters={"arm": arm, "width": width})
            for arm in ("dense", "learned")
            for width in WIDTHS
        },
        columns={name: ColumnSpec(parameters={"tokens": tokens}) for name, tokens in TOKENS.items()}
        | {"end": ColumnSpec()},
        sizes={"cpu": []},
        seeds={"cpu": [0, 1, 2]},
        figure={"kind": "lines", "trend": {**TREND, **trend}},
    )


def loss(arm: str, width: int, tokens: float, seed: int) -> float:
    """The gap is 0.1 at a million tokens and d 64, and falls by 0.02 a doubling of tokens; width does nothing to it."""
    gap = 0.1 - 0.02 * math.log2(tokens / 1e6) + 0.001 * (seed - 1) * math.log2(tokens * width)
    return 2.0 + 0.05 * seed + (gap if arm == "learned" else 0.0)


def store(tmp_path, seeds: int = 3, rows: int = 4) -> RecordStore:
    e, kept = experiment(), RecordStore(tmp_path)
    for row, spec in list(e.rows.items())[:rows]:
        for seed in range(seeds):
            at = {
                name: {"loss": loss(spec.parameters["arm"], spec.parameters["width"], tokens, seed)}
                for name, tokens in TOKENS.items()
            }
            kept.write(Record(e.id, row, seed, "cpu", {}, "0", {**at, "end": {"loss": 2.0}}))
    return kept


def test_each_seed_is_a_point_and_the_fit_a_line_a_width(tmp_path) -> None:
    item = gather(store(tmp_path), experiment())
    (plot,) = trend_plots(item, item.measured[0])
    assert [(line.label, line.series, len(line.points)) for line in plot.lines] == [
        ("width 64", "each seed", 9),
        ("width 128", "each seed", 9),
        ("width 64", "fitted, with its 95 % interval", 3),
        ("width 128", "fitted, with its 95 % interval", 3),
    ]
    fitted = plot.lines[2].points
    assert [p.x for p in fitted] == list(TOKENS.values())
    assert [p.y for p in fitted] == pytest.approx([0.1, 0.08, 0.06])
    assert all(p.n == 3 and p.std is None and p.half_width is not None and p.half_width > 0 for p in fitted)
    assert f",3,{fitted[0].half_width!r}\n" in to_csv(plot)
    assert plot.log_x
    assert plot.title == "learned less dense, size cpu"


def test_the_caption_says_which_slope_is_told_from_0(tmp_path) -> None:
    item = gather(store(tmp_path), experiment())
    (plot,) = trend_plots(item, item.measured[0])
    assert "-0.0200 nats/token a doubling of tokens (95 % interval -0.0225 to -0.0175): it falls" in plot.caption
    assert "includes 0, so that no trend with width is shown" in plot.caption
    (drawing,) = drawings(item, item.measured[0])
    assert drawing.name == "scaling-gap-cpu-gap-learned"
    assert drawing.svg.startswith("<?xml")


def test_the_command_tells_the_trend_in_words_and_in_json(tmp_path) -> None:
    kept, e = store(tmp_path), experiment()
    (told,) = item_json(e, kept.root)["trends"]
    assert (told["size"], told["arm"], told["against"], told["n"]) == ("cpu", "learned", "dense", 3)
    assert told["a_doubling_of"]["tokens"]["mean"] == pytest.approx(-0.02)
    assert told["a_doubling_of"]["tokens"]["interval"] == pytest.approx((-0.02248, -0.01752), abs=1e-5)
    assert told["a_doubling_of"]["width"]["mean"] == pytest.approx(0.0, abs=1e-9)
    out = io.StringIO()
    print_item(e, kept.root, console=Console(file=out, width=200))
    assert "it falls with tokens." in out.getvalue()


def test_two_seeds_give_no_interval_and_one_width_no_line(tmp_path) -> None:
    item = gather(store(tmp_path / "two", seeds=2), experiment())
    (plot,) = trend_plots(item, item.measured[0])
    assert "takes 3 seeds" in plot.caption
    assert all(p.band is None for line in plot.lines for p in line.points)
    narrow = gather(store(tmp_path / "narrow", rows=3), experiment())
    (points,) = trend_plots(narrow, narrow.measured[0])
    assert [line.series for line in points.lines] == ["each seed"]
    assert "too few places" in points.caption


def test_nothing_is_drawn_before_both_arms_are_there(tmp_path) -> None:
    item = gather(store(tmp_path, rows=2), experiment())
    assert trend_plots(item, item.measured[0]) == []


def test_an_arm_that_no_row_has_is_told(tmp_path) -> None:
    item = gather(store(tmp_path), experiment(against="dens"))
    with pytest.raises(UserError, match="no row has the arm 'dens'"):
        trend_plots(item, item.measured[0])


def test_a_slope_that_rises_is_said_to_and_an_interval_around_0_decides_nothing() -> None:
    assert slope(Estimate(0.0123, (0.01, 0.0146)), "width", "nats/token") == (
        "The gap changes by +0.0123 nats/token a doubling of width (95 % interval +0.0100 to +0.0146): it rises with "
        "width."
    )
    assert slope(Estimate(-0.001, (-0.012, 0.01)), "tokens", "%").endswith(
        "(95 % interval -0.012 to +0.010): the interval includes 0, so that no trend with tokens is shown."
    )

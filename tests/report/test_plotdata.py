from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from efftx.errors import UserError
from efftx.report.drawings import all_drawings
from efftx.report.items import gather
from efftx.report.plotdata import Plot, Point, panels, paper_plot, plot, to_csv
from efftx.study.experiment import Experiment, Row
from efftx.study.published import Published
from efftx.study.records import RecordStore

from .conftest import make_experiment, make_record

COLUMNS = {"over": "columns", "x": "length", "y": "accuracy", "log_x": True, "y_label": "accuracy (%)"}


def plot_of(store: RecordStore, experiment: Experiment) -> Plot:
    item = gather(store, experiment)
    found = plot(item, item.measured[0])
    assert found is not None
    return found


def with_figure(**figure: Any) -> Experiment:
    return make_experiment(figure=figure)


def test_a_plot_over_columns_has_a_line_a_row_with_spread(full_store: RecordStore) -> None:
    # Full is 90, 91, 92 at length 2 and ten less at 8
    lines = plot_of(full_store, with_figure(**COLUMNS)).lines
    assert [(line.label, line.kind) for line in lines] == [
        ("Full", "measured"),
        ("LSH", "measured"),
    ]
    assert lines[0].points == (Point(2.0, 91.0, 1.0, 3), Point(8.0, 81.0, 1.0, 3))


def paper_of(store: RecordStore, experiment: Experiment) -> Plot | None:
    return paper_plot(gather(store, experiment))


def test_the_papers_readings_are_a_figure_of_their_own_beside_the_measured(full_store: RecordStore) -> None:
    paper = paper_of(full_store, with_figure(**COLUMNS, log_y=True))
    assert paper is not None
    assert [(line.label, line.kind, line.points) for line in paper.lines] == [
        ("Full", "published", (Point(8.0, 12.34),))
    ]
    assert (paper.title, paper.panel, paper.log_y) == ("the paper's", "published", True)
    unverified = make_experiment(figure=COLUMNS, published=Published("unverified", {"LSH": {"at 2": 5.0}}))
    paper = paper_of(full_store, unverified)
    assert paper is not None
    assert [(line.label, line.kind) for line in paper.lines] == [("LSH", "published-unverified")]
    names = [drawing.name for drawing in all_drawings(gather(full_store, with_figure(**COLUMNS)))]
    assert names == ["paper-table2-cpu", "paper-table2-published"]


def test_the_papers_curves_are_drawn_on_its_own_axes(full_store: RecordStore) -> None:
    curves = Published("verified", curves={"baseline": {500: 1.25, 400: 1.5}, "sparse": {500: 1.0}})
    figure = {"over": "curve", "x": "step", "y": "accuracy", "x_label": "our step", "log_x": True}
    paper = paper_of(full_store, make_experiment(figure=figure, published=curves))
    assert paper is not None
    assert [(line.label, line.points) for line in paper.lines] == [
        ("baseline", (Point(400.0, 1.5), Point(500.0, 1.25))),
        ("sparse", (Point(500.0, 1.0),)),
    ]
    assert (paper.x_label, paper.log_x, paper.names) == ("step", False, ())


def test_the_papers_readings_do_not_stand_beside_another_metric(full_store: RecordStore) -> None:
    assert paper_of(full_store, with_figure(over="columns", x="length", y="loss")) is None
    assert paper_of(full_store, make_experiment(figure=COLUMNS, published=None)) is None


def test_two_quantities_are_two_panels_and_a_zero_has_no_logarithmic_axis(store: RecordStore) -> None:
    store.write(make_record("Full", 0, series={"depth": [2.0, 4.0], "held": [3.0, 5.0], "kept": [0.0, 1.0]}))
    figure = {"over": "series", "x": "depth", "y": ["held", "kept"], "y_label": ["MB held", "MB kept"], "log_y": True}
    item = gather(store, with_figure(**figure, panels=True))
    held, kept = panels(item, item.measured[0])
    assert (held.y_label, kept.y_label) == ("MB held", "MB kept")
    assert (held.panel, kept.panel) == ("held", "kept")
    assert (held.log_y, kept.log_y) == (True, False)
    assert [(line.label, line.series) for line in (*held.lines, *kept.lines)] == [("Full", ""), ("Full", "")]


def test_lines_go_by_the_labels_of_their_rows(full_store: RecordStore) -> None:
    rows = {"Full": Row(label="full attention"), "LSH": Row()}
    found = plot_of(full_store, make_experiment(rows=rows, figure=COLUMNS))
    assert [line.label for line in found.lines] == list(found.names) == ["full attention", "LSH"]


def test_a_plot_over_the_curve_averages_the_seeds_at_each_step(full_store: RecordStore) -> None:
    found = plot_of(full_store, with_figure(over="curve", x="step", y="accuracy"))
    assert found.lines[0].points == (Point(10.0, 45.5, 0.5, 3), Point(20.0, 91.0, 1.0, 3))
    assert (found.x_label, found.y_label) == ("step", "accuracy (%)")


def test_a_plot_over_series_has_a_line_a_row_and_name(store: RecordStore) -> None:
    series = {"degrees": [0.0, 90.0], "measured": [1.0, 0.5], "closed_form": [1.0, 0.5]}
    store.write(make_record("Full", 0, series=series))
    found = plot_of(store, with_figure(over="series", x="degrees", y=["measured", "closed_form"]))
    assert [(line.label, line.series) for line in found.lines] == [("Full", "measured"), ("Full", "closed form")]
    assert found.lines[0].points == (Point(0.0, 1.0, None, 1), Point(90.0, 0.5, None, 1))


def test_the_caption_names_size_data_and_seeds(full_store: RecordStore) -> None:
    caption = plot_of(full_store, with_figure(**COLUMNS)).caption
    assert "size cpu on duplicate (length 256)" in caption
    assert "n = 3 seeds" in caption


def test_the_csv_gives_every_point_unrounded(full_store: RecordStore) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(plot_of(full_store, with_figure(**COLUMNS))))))
    assert [lines[0][key] for key in ("line", "kind", "x", "y", "std", "n")] == [
        "Full",
        "measured",
        "2.0",
        "91.0",
        "1.0",
        "3",
    ]
    paper = paper_of(full_store, with_figure(**COLUMNS))
    assert paper is not None
    assert next(iter(csv.DictReader(io.StringIO(to_csv(paper)))))["y"] == "12.34"


def test_an_unknown_plot_is_named_with_the_nearest_one(full_store: RecordStore) -> None:
    item = gather(full_store, with_figure(over="column", x="length"))
    with pytest.raises(UserError, match="no plot over 'column'") as caught:
        plot(item, item.measured[0])
    assert "columns" in caught.value.hint


def test_an_item_without_a_figure_has_no_plot(full_store: RecordStore, experiment: Experiment) -> None:
    item = gather(full_store, experiment)
    assert plot(item, item.measured[0]) is None

"""Drawings that are no plot of lines, by the name that an experiment's `figure.draw` gives, from records' series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from efftx.errors import UserError, nearest
from efftx.report import figures, lsh_drawings, pattern_drawings, picture_drawings, sparse_drawings
from efftx.report.items import Item, Measured
from efftx.report.plotdata import Plot
from efftx.study.experiment import Experiment
from efftx.study.records import Record


@dataclass(frozen=True)
class Illustration:
    """A drawing, and the numbers it was drawn from as lines of points."""

    data: Plot
    svg: str


@dataclass(frozen=True)
class _Kind:
    """Which series a record of it has, the numbers that are drawn, and the drawing as SVG text.

    Both get the first record of each row that has the series, in the order of the rows.
    """

    series: str
    plot: Callable[[Experiment, Sequence[Record]], Plot]
    draw: Callable[[Experiment, Sequence[Record]], str]


_KINDS = {
    # Reformer, figure 1. Series: `circle_degrees` (0 .. 359), `circle_codes_0` and on to `_2` (the bucket of each under
    # one rotation), `near_degrees` and `far_degrees` (the two points of a pair, in whole degrees).
    "angular_lsh": _Kind("circle_degrees", lsh_drawings.circles_plot, lsh_drawings.draw_circles),
    # Sparse Transformer, figure 2: the pixels that heads look at. Series: `map`, `query`, `side`.
    "attention_maps": _Kind("map", picture_drawings.maps_plot, picture_drawings.draw_maps),
    # Sparse Transformer, figure 3: the positions that outputs are connected with. Series: `connectivity`, `query`.
    "connectivity": _Kind("connectivity", pattern_drawings.connectivity_plot, pattern_drawings.draw_connectivity),
    # Reformer, figure 2: a sequence hashed, sorted and cut into chunks. Series: those of the measure `hash_pipeline`.
    "hash_pipeline": _Kind("matrix", lsh_drawings.pipeline_plot, lsh_drawings.draw_pipeline),
    # Sparse is Enough, figure 4a: a permutation as gate times projection. Series: `gate`, `projection`, `matrix`,
    # `modules`.
    "permutation": _Kind("gate", sparse_drawings.permutation_plot, sparse_drawings.draw_permutation),
    # Sparse Transformer, figures 1 and 5: what models draw. Series: `rows`, of pictures or of spectra, `shape`, `n`.
    "samples": _Kind("rows", picture_drawings.samples_plot, picture_drawings.draw_samples),
    # Sparse is Enough, figure 2: the units that a sparse feed-forward layer selects, and the weights that it reads.
    # Series: `choices`, `text`, `text_ends`, `units_a_block`.
    "sparse_ff": _Kind("choices", sparse_drawings.selection_plot, sparse_drawings.draw_selection),
}


def illustrate(item: Item, measured: Measured) -> Illustration | None:
    """The illustration that `figure.draw` names; None where it names none, or where the records lack its series.

    UserError for a name that there is not.
    """
    experiment, figure = item.experiment, item.experiment.figure
    if figure is None or "draw" not in figure:
        return None
    name = str(figure["draw"])
    if name not in _KINDS:
        message = f"{experiment.id}: figure.draw: there is no illustration '{name}'"
        raise UserError("bad_experiment", message, nearest(name, _KINDS))
    kind = _KINDS[name]
    by_row = {record.row: record for record in reversed(measured.records) if kind.series in record.series}
    records = [by_row[row] for row in experiment.rows if row in by_row]
    if not records:
        return None
    with figures.style():
        return Illustration(kind.plot(experiment, records), kind.draw(experiment, records))

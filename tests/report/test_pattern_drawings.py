"""The Sparse Transformer's connectivity is drawn from what the records' series say."""

from __future__ import annotations

from efftx.report.illustrations import Illustration, illustrate
from efftx.report.items import gather
from efftx.study.records import RecordStore

from .conftest import make_experiment, make_record

# Four positions: a window of two, and every second position.
WINDOW_AND_COLUMN = [3, 0, 0, 0, 1, 3, 0, 0, 2, 1, 3, 0, 0, 2, 1, 3]


def drawn(store: RecordStore, codes: list[int], query: int = 3) -> Illustration | None:
    series = {"connectivity": [float(code) for code in codes], "query": [float(query)]}
    store.write(make_record("Full", 0, series=series))
    item = gather(store, make_experiment(figure={"draw": "connectivity"}))
    return illustrate(item, item.measured[0])


def test_a_line_a_factor_has_the_inputs_of_every_output(store: RecordStore) -> None:
    found = drawn(store, WINDOW_AND_COLUMN)
    assert found is not None
    points = {line.series: [(p.x, p.y) for p in line.points] for line in found.data.lines}
    assert points == {
        "A1": [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3)],
        "A2": [(0, 0), (1, 1), (0, 2), (2, 2), (1, 3), (3, 3)],
    }
    assert "2 × 2" in found.data.caption
    assert "all 4 outputs" in found.data.caption


def test_another_connection_and_another_output_give_another_drawing(store: RecordStore) -> None:
    same = [drawn(store, WINDOW_AND_COLUMN) for _ in range(2)]
    other = [*WINDOW_AND_COLUMN[:12], 1, 2, 1, 3]
    drawings = [same[0], same[1], drawn(store, other), drawn(store, WINDOW_AND_COLUMN, query=2)]
    svgs = [d.svg for d in drawings if d is not None]
    assert svgs[0] == svgs[1]
    assert len(set(svgs)) == 3


def test_records_without_connectivity_give_no_drawing(full_store: RecordStore) -> None:
    item = gather(full_store, make_experiment(figure={"draw": "connectivity"}))
    assert illustrate(item, item.measured[0]) is None

from __future__ import annotations

import pytest

from efftx.errors import UserError
from efftx.report.illustrations import Illustration, illustrate
from efftx.report.items import gather
from efftx.report.lsh_drawings import _sectors
from efftx.study.records import RecordStore

from .conftest import make_experiment, make_record

DEGREES = [float(d) for d in range(360)]


def circle(shift: int) -> list[float]:
    """Four buckets of ninety degrees, the first from `shift` on."""
    return [float(((int(d) - shift) % 360) // 90) for d in DEGREES]


SERIES = {
    "circle_degrees": DEGREES,
    **{f"circle_codes_{r}": circle(30 * r) for r in range(3)},
    "near_degrees": [40.0, 50.0],
    "far_degrees": [40.0, 170.0],
}


def test_the_circles_are_drawn_from_the_hash_codes_of_a_record(store: RecordStore) -> None:
    store.write(make_record("Full", 0, series=SERIES))
    item = gather(store, make_experiment(figure={"draw": "angular_lsh"}))
    found = illustrate(item, item.measured[0])
    assert found is not None
    assert [line.label for line in found.data.lines] == ["rotation 1", "rotation 2", "rotation 3"]
    first = found.data.lines[1].points
    assert (first[29].y, first[30].y) == (3.0, 0.0)
    assert found.svg == getattr(illustrate(item, item.measured[0]), "svg", None)


def test_other_codes_give_another_drawing(store: RecordStore) -> None:
    drawn = []
    for shift in (0, 45):
        store.write(make_record("Full", 0, series={**SERIES, "circle_codes_0": circle(shift)}))
        item = gather(store, make_experiment(figure={"draw": "angular_lsh"}))
        drawn.append(getattr(illustrate(item, item.measured[0]), "svg", None))
    assert drawn[0] != drawn[1]


def test_records_without_the_series_give_no_illustration(full_store: RecordStore) -> None:
    item = gather(full_store, make_experiment(figure={"draw": "angular_lsh"}))
    assert illustrate(item, item.measured[0]) is None


def test_an_unknown_illustration_is_named_with_the_nearest_one(full_store: RecordStore) -> None:
    item = gather(full_store, make_experiment(figure={"draw": "angular_hash"}))
    with pytest.raises(UserError, match="angular_hash") as caught:
        illustrate(item, item.measured[0])
    assert "angular_lsh" in caught.value.hint


def test_a_bucket_across_zero_degrees_is_one_sector() -> None:
    codes = {int(d): int(c) for d, c in zip(DEGREES, circle(30), strict=True)}
    assert _sectors(codes) == [(30, 119, 0), (120, 209, 1), (210, 299, 2), (300, 389, 3)]


def test_one_bucket_everywhere_is_one_sector() -> None:
    assert _sectors(dict.fromkeys(range(360), 2)) == [(0, 359, 2)]


# Four positions in two buckets, in chunks of two; the last query sees its own bucket in the chunk before.
PIPELINE = {
    "matrix": [0, 1, 0, 0, 1, 0, 0, 0, 2, 2, 0, 1, 2, 1, 1, 0],
    **{"buckets_q": [1, 0, 1, 0], "buckets_k": [1, 0, 1, 0], "order_q": [1, 3, 0, 2], "order_k": [1, 3, 0, 2]},
    "chunk_len": [2],
}


def test_the_way_of_a_sequence_through_hash_attention_is_drawn_from_a_record(store: RecordStore) -> None:
    def drawn(**changed: list[float]) -> Illustration:
        series = {name: [float(v) for v in values] for name, values in {**PIPELINE, **changed}.items()}
        store.write(make_record("Full", 0, series=series))
        item = gather(store, make_experiment(figure={"draw": "hash_pipeline"}))
        found = illustrate(item, item.measured[0])
        assert found is not None
        return found

    first = drawn()
    points = {line.series: [(p.x, p.y) for p in line.points] for line in first.data.lines}
    assert points["attended to"] == [(1, 0), (0, 1), (3, 2), (1, 3), (2, 3)]
    assert points["computed and hidden"] == [(0, 2), (1, 2), (0, 3)]
    assert drawn().svg == first.svg
    assert drawn(buckets_q=[0, 0, 1, 1]).svg != first.svg
    assert drawn(matrix=[1] * 16).svg != first.svg

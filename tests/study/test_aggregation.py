from __future__ import annotations

import math
from dataclasses import replace

import pytest

from efftx.study.aggregation import cells, crossings, of_one_device
from efftx.study.experiment import Cell, ColumnSpec, Derived, Experiment, Row, places
from efftx.study.published import Published
from efftx.study.records import Record

from ..reproduce.fakes import record


def table(**rest: object) -> Experiment:
    given = {
        "id": "paper/item",
        "caption": "",
        "kind": "train",
        "cell": Cell("accuracy", "%", "higher"),
        "rows": {"A": Row(), "B": Row()},
        "columns": {"x": ColumnSpec(), "y": ColumnSpec()},
        "sizes": {"cpu": []},
    }
    return Experiment(**{**given, **rest})  # type: ignore[arg-type]


def test_a_cell_is_mean_and_sample_deviation_over_seeds() -> None:
    found = cells(table(), [record("A", s, {"x": v}) for s, v in ((2, 6.0), (0, 1.0), (1, 2.0))], "cpu")
    assert [(c.row, c.column, c.n) for c in found] == [("A", "x", 3)]
    assert found[0].mean == 3.0
    assert found[0].std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert found[0].values == {0: 1.0, 1: 2.0, 2: 6.0}
    assert list(found[0].values) == [0, 1, 2]


def test_one_seed_has_no_spread() -> None:
    (cell,) = cells(table(), [record("A", 0, {"x": 1.0})], "cpu")
    assert (cell.mean, cell.std, cell.n) == (1.0, None, 1)


def test_the_papers_value_stands_alone_where_nothing_was_run() -> None:
    e = table(published=Published("unverified", {"B": {"y": 7.5}}))
    found = cells(e, [record("A", 0, {"x": 1.0})], "cpu")
    assert [(c.row, c.mean, c.published, c.published_source, c.n) for c in found] == [
        ("A", 1.0, None, None, 1),
        ("B", None, 7.5, "unverified", 0),
    ]


def test_beside_verified_values_stand_unverified_ones() -> None:
    e = table(published=Published("verified", {"A": {"x": 1.5}}, unverified={"A": {"y": 2.5}}))
    found = {c.column: (c.published, c.published_source) for c in cells(e, [], "cpu")}
    assert found == {"x": (1.5, "verified"), "y": (2.5, "unverified")}


def test_other_sizes_and_other_items_do_not_enter() -> None:
    other = record("A", 0, {"x": 1.0})
    other.id = "paper/other"
    assert cells(table(), [other, record("A", 0, {"x": 1.0}, size="smoke")], "cpu") == []


def test_a_table_without_columns_has_the_column_without_a_name() -> None:
    (cell,) = cells(table(columns={}), [record("A", 0, {"": 4.0})], "cpu")
    assert (cell.row, cell.column, cell.mean) == ("A", "", 4.0)


def test_a_metric_of_the_curve_is_taken_from_the_record() -> None:
    steps = ColumnSpec(cell=Cell("steps_to_99", "steps", "lower"))
    e = table(columns={"steps": steps}, derived={"steps_to_99": Derived("accuracy", first_at_least=99.0)})
    reached = record("A", 0, {}, curve=[{"step": 25, "accuracy": 98.0}, {"step": 50, "accuracy": 99.0}])
    missed = record("B", 0, {}, curve=[{"step": 25, "accuracy": 98.0}])
    missed.config = {"training": {"steps": 3000}}
    found = cells(e, [reached, missed], "cpu")
    assert [(c.mean, c.n, c.note) for c in found] == [
        (50.0, 1, ""),
        (None, 1, "not reached within 3000 steps by 1 of 1"),
    ]


def lines(a: list[float], b: list[float]) -> list[Record]:
    return [
        Record(
            "paper/item",
            row,
            0,
            "cpu",
            {},
            "h",
            {f"{n}": {"accuracy": v} for n, v in zip((1000, 4000), y, strict=True)},
        )
        for row, y in (("A", a), ("B", b))
    ]


def crossing_table() -> Experiment:
    return table(
        columns={f"{n}": ColumnSpec(parameters={"length": n}) for n in (1000, 4000)},
        figure={"x": "length", "crossings": [{"between": ["A", "B"], "published": 2100}]},
    )


def test_a_value_at_a_step_is_that_evaluations_and_absent_where_there_was_none() -> None:
    at = ColumnSpec(cell=Cell(metric="at_20"))
    e = table(columns={"at 20": at}, derived={"at_20": Derived("accuracy", at_step=20)})
    curve = [{"step": 10, "accuracy": 1.0}, {"step": 20, "accuracy": 2.0}, {"step": 30, "accuracy": 3.0}]
    (cell,) = cells(e, [replace(record("A", 0, {}), curve=curve), replace(record("A", 1, {}), curve=curve[:1])], "cpu")
    assert cell.values == {0: 2.0}


def test_lines_cross_where_their_logarithms_do() -> None:
    # A grows with the length, B is flat: 1, 4 against 3, 3 cross at 3000.
    (found,) = crossings(crossing_table(), lines([1.0, 4.0], [3.0, 3.0]), "cpu")
    assert found.x == pytest.approx(3000)
    assert found.published == 2100


def test_a_crossing_is_told_of_every_seed_too() -> None:
    # Means of A 1, 4: as of the first seed. The second crosses later, the third not at all.
    of_a = ([1.0, 4.0], [0.5, 6.5], [1.5, 1.5])
    records = [replace(r, seed=seed) for seed, a in enumerate(of_a) for r in lines(a, [3.0, 3.0])]
    (found,) = crossings(crossing_table(), records, "cpu")
    assert found.x == pytest.approx(3000)
    first, second, third = found.by_seed
    assert first == pytest.approx(3000)
    assert second is not None
    assert 1000 < second < 4000
    assert second != first
    assert third is None


def test_of_several_crossings_the_last_is_told() -> None:
    columns = {f"{n}": ColumnSpec(parameters={"length": n}) for n in (1, 2, 4, 8, 16)}
    e = replace(crossing_table(), columns=columns)
    values = {"A": [1.0, 3.0, 1.0, 1.0, 4.0], "B": [2.0] * 5}
    records = [record(row, 0, dict(zip(columns, found, strict=True))) for row, found in values.items()]
    (found,) = crossings(e, records, "cpu")
    assert found.x == pytest.approx(8 * 2**0.5)
    assert found.why == "between 8 and 16"


def test_a_further_column_at_one_place_is_no_further_point_of_a_line() -> None:
    e = crossing_table()
    p99 = ColumnSpec(parameters={"length": 1000}, cell=Cell(metric="p99"))
    e = replace(e, columns={**e.columns, "99th percentile": p99})
    records = [
        replace(r, metrics={**r.metrics, "99th percentile": {"accuracy": 9.0, "p99": 99.0 if r.row == "A" else 1.0}})
        for r in lines([1.0, 4.0], [3.0, 3.0])
    ]
    (found,) = crossings(e, records, "cpu")
    assert found.x == pytest.approx(3000)
    assert places(e.columns, "length") == {"1000": 1000.0, "4000": 4000.0}


def test_lines_that_do_not_cross_say_so() -> None:
    (found,) = crossings(crossing_table(), lines([1.0, 2.0], [3.0, 3.0]), "cpu")
    assert (found.x, found.why) == (None, "A stays below B from 1000 to 4000")
    (found,) = crossings(crossing_table(), [], "cpu")
    assert (found.x, found.why) == (None, "not run")


def test_a_table_is_of_one_device_and_what_is_counted_belongs_to_all() -> None:
    def made_on(gpu: str | None, seed: int, row: str = "A") -> Record:
        return record(row, seed, {"x": float(seed)}, environment={"gpu": gpu})

    first, second, third = made_on("card", 0), made_on(None, 1), made_on("card", 2)
    gate = replace(made_on(None, 0, "unigram"), config={"gate": "ngram"})
    assert of_one_device([first, second, third, gate]) == ([first, third, gate], [second])
    (cell,) = cells(table(), of_one_device([first, second, third])[0], "cpu")
    assert (cell.values, cell.n) == ({0: 0.0, 2: 2.0}, 2)
    assert of_one_device([second, first]) == ([second], [first]), "at a tie the first"
    assert of_one_device([first, made_on("another card", 1)]) == ([first], [made_on("another card", 1)])
    assert of_one_device([gate]) == ([gate], [])
    assert of_one_device([]) == ([], [])


def test_a_table_of_measurements_is_of_one_processor_and_its_rows_of_one_number_of_threads() -> None:
    def made_on(processor: str, threads: int, seed: int, row: str = "A", measure: str = "measure") -> Record:
        environment = {"processor": processor, "threads": threads}
        return replace(record(row, seed, {"x": 1.0}, environment=environment), config={measure: "a time"})

    first, second, third = (made_on("one", 2, 0), made_on("another", 2, 1), made_on("one", 2, 2))
    assert of_one_device([first, second, third]) == ([first, third], [second])
    alone = made_on("one", 1, 3)
    assert of_one_device([first, third, alone]) == ([first, third], [alone])
    another_row = made_on("one", 1, 0, "B")
    assert of_one_device([first, third, another_row]) == ([first, third, another_row], [])
    new = [replace(each, environment={**each.environment, "instructions": "AVX2"}) for each in (first, third)]
    assert of_one_device([new[0], third]) == ([new[0], third], []), "an earlier record does not say its instructions"
    other = replace(alone, environment={**first.environment, "instructions": "AVX512"})
    assert of_one_device([*new, other]) == (new, [other])
    trained = [made_on("one", 1, 0, measure="model"), made_on("another", 2, 1, measure="model")]
    assert of_one_device(trained) == (trained, []), "a training ends in the same quality on both"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import pytest

from efftx.report.items import gather
from efftx.report.model import Cell, Kind, Table
from efftx.report.show import item_json
from efftx.report.tables import tables
from efftx.study.experiment import Cell as CellFormat
from efftx.study.experiment import ColumnSpec, Experiment, Row
from efftx.study.gates import Gate
from efftx.study.published import Printed, Published
from efftx.study.records import RecordStore

from .conftest import make_experiment, make_record


def only_table(store: RecordStore, experiment: Experiment) -> Table:
    (table,) = tables(gather(store, experiment))
    return table


def cells_of(table: Table, kind: Kind) -> dict[tuple[str, str], Cell]:
    rows = [row for block in table.blocks for row in block.rows]
    return {(cell.row, cell.column): cell for row in rows for cell in row.cells if cell.kind is kind}


def texts(table: Table, kind: Kind) -> dict[tuple[str, str], str]:
    return {place: cell.text for place, cell in cells_of(table, kind).items()}


def test_a_measured_cell_is_mean_and_sample_deviation_over_its_seeds(
    full_store: RecordStore, experiment: Experiment
) -> None:
    # Full at 8 is 80, 81, 82: mean 81, sample deviation 1
    table = only_table(full_store, experiment)
    assert texts(table, Kind.MEASURED)["Full", "at 8"] == "81.0 ± 1.0"
    assert "n = 3 seeds" in table.caption


def test_the_caption_names_size_data_variant_and_direction(full_store: RecordStore, experiment: Experiment) -> None:
    caption = only_table(full_store, experiment).caption
    assert "size cpu on duplicate (length 256)" in caption
    assert "accuracy (%), higher is better" in caption


def test_one_seed_is_shown_without_spread(store: RecordStore, experiment: Experiment) -> None:
    store.write(make_record("Full", 0))
    store.write(make_record("LSH", 0))
    table = only_table(store, experiment)
    assert texts(table, Kind.MEASURED)["Full", "at 8"] == "80.0"
    assert "one seed, no spread" in table.caption
    assert cells_of(table, Kind.MEASURED)["Full", "at 8"].std is None


def test_a_cell_with_another_n_says_so(full_store: RecordStore, experiment: Experiment) -> None:
    full_store.path("paper/table2", "LSH", 2, "cpu").unlink()
    full_store.write(make_record("LSH", 1, metrics={"at 2": {"accuracy": 81.0}}))
    table = only_table(full_store, experiment)
    measured = texts(table, Kind.MEASURED)
    assert measured["Full", "at 8"] == "81.0 ± 1.0"
    assert measured["LSH", "at 2"] == "80.5 ± 0.7 (n = 2)"
    assert measured["LSH", "at 8"] == "70.0 (n = 1)"
    assert "where no other n is given; claims compare the seeds in common" in table.caption


def test_a_row_with_another_n_throughout_says_so_once_beside_its_name(
    full_store: RecordStore, experiment: Experiment
) -> None:
    full_store.path("paper/table2", "LSH", 2, "cpu").unlink()
    table = only_table(full_store, experiment)
    assert [row.label for block in table.blocks[:1] for row in block.rows] == ["Full", "LSH (n = 2)"]
    assert texts(table, Kind.MEASURED)["LSH", "at 8"] == "70.5 ± 0.7"
    assert "where no other n is given" in table.caption


def test_a_cell_without_a_record_says_not_run(store: RecordStore, experiment: Experiment) -> None:
    store.write(make_record("Full", 0))
    assert texts(only_table(store, experiment), Kind.MISSING)["LSH", "at 2"] == "not run"


def test_an_item_without_records_shows_what_the_paper_says(store: RecordStore, experiment: Experiment) -> None:
    table = only_table(store, experiment)
    assert "Not run at any size" in table.caption
    assert texts(table, Kind.VERIFIED) == {("Full", "at 8"): "12.3"}
    assert set(texts(table, Kind.MISSING).values()) == {"not run", "–"}


def test_published_values_have_columns_of_their_own_where_the_paper_has_some(
    full_store: RecordStore, experiment: Experiment
) -> None:
    table = only_table(full_store, experiment)
    assert [(span.heading, span.width) for span in table.spans] == [("Published", 1), ("Measured, size cpu", 2)]
    for row in table.blocks[0].rows:
        assert row.cells[0].kind in (Kind.VERIFIED, Kind.MISSING)
        assert all(cell.kind is Kind.MEASURED for cell in row.cells[1:])


def test_published_values_of_a_wide_table_have_rows_of_their_own(full_store: RecordStore) -> None:
    columns = {f"at {length}": ColumnSpec() for length in (2, 4, 6, 8)}
    table = only_table(full_store, make_experiment(columns=columns))
    assert [block.heading for block in table.blocks] == [
        "Published",
        "Measured, size cpu",
        "Gates: what a model must beat",
    ]
    assert [row.label for row in table.blocks[0].rows] == ["Full"]
    assert not table.spans


def test_without_values_of_the_papers_the_caption_alone_says_what_was_measured(full_store: RecordStore) -> None:
    table = only_table(full_store, make_experiment(published=None))
    assert [block.heading for block in table.blocks] == ["", "Gates: what a model must beat"]
    assert table.caption.startswith("Measured at size cpu on ")


def test_a_variant_that_begins_with_its_name_says_it_once_and_lengths_stand_in_their_order(store: RecordStore) -> None:
    for seed, length in enumerate((1024, 128, 256)):
        data = {"name": "duplicate", "variant": f"duplicate[length={length}]", "checksum": "ab"}
        store.write(make_record("Full", seed, data=data))
    caption = only_table(store, make_experiment()).caption
    assert "on duplicate[length=128], duplicate[length=256], duplicate[length=1024]: " in caption


def test_where_only_gates_are_computed_the_caption_says_no_more(store: RecordStore) -> None:
    gate = replace(make_record("Full", 0), row="unigram", config={"gate": {"kind": "ngram", "order": 1}})
    e = make_experiment(gates={"unigram": Gate("ngram", order=1)})
    store.write(gate)
    assert only_table(store, e).caption == (
        "At size cpu only the gates are computed so far. Cells: accuracy (%), higher is better."
    )


def test_many_variants_are_counted_in_a_caption(store: RecordStore) -> None:
    for seed in range(5):
        data = {"name": "copy_add", "variant": f"copy_add[digits={seed}]", "checksum": "ab"}
        store.write(make_record("Full", seed, data=data))
    assert "at size cpu on 5 variants of copy_add: " in only_table(store, make_experiment()).caption


def test_every_size_has_a_table_of_its_own(full_store: RecordStore) -> None:
    full_store.write(make_record("Full", 0, size="smoke"))
    made = tables(gather(full_store, make_experiment(sizes={"cpu": [], "smoke": []})))
    assert [table.caption.split(" on ")[0] for table in made] == ["Measured at size cpu", "Measured at size smoke"]
    assert {cell.size for cell in cells_of(made[1], Kind.MEASURED).values()} == {"smoke"}


def test_an_unverified_value_is_marked_and_explained(full_store: RecordStore) -> None:
    experiment = make_experiment(published=Published("unverified", {"Full": {"at 8": 12.34}}))
    table = only_table(full_store, experiment)
    assert texts(table, Kind.UNVERIFIED) == {("Full", "at 8"): "12.3 †"}
    assert not texts(table, Kind.VERIFIED)
    assert any(note.startswith("†") for note in table.notes)
    assert "unverified" in table.spans[0].heading


def test_the_trivial_answer_stands_in_a_block_of_its_own(full_store: RecordStore, experiment: Experiment) -> None:
    table = only_table(full_store, experiment)
    assert table.blocks[-1].heading == "Gates: what a model must beat"
    assert texts(table, Kind.BASELINE) == {("chance", "at 2"): "1.0", ("chance", "at 8"): "1.0"}


def test_a_gate_before_rows_that_are_not_run_at_a_size_is_not_shown_there(full_store: RecordStore) -> None:
    gates = {"chance": Gate("constant", 1.0), "here": Gate("majority"), "paper": Gate("majority", only=["paper"])}
    table = only_table(full_store, make_experiment(gates=gates))
    assert [row.label for row in table.blocks[-1].rows] == ["chance", "here"]


def test_the_trivial_answer_is_silent_about_other_metrics(full_store: RecordStore) -> None:
    steps = ColumnSpec(cell=CellFormat("steps", "steps", "lower", "{:.0f}"))
    experiment = make_experiment(columns={"at 2": ColumnSpec(), "at 8": steps})
    assert set(texts(only_table(full_store, experiment), Kind.BASELINE)) == {("chance", "at 2")}


def bold(table: Table) -> set[tuple[str, str]]:
    return {place for place, cell in cells_of(table, Kind.MEASURED).items() if cell.bold}


def test_the_clear_best_of_a_column_is_bold(full_store: RecordStore, experiment: Experiment) -> None:
    assert bold(only_table(full_store, experiment)) == {("Full", "at 2"), ("Full", "at 8")}


def test_a_best_that_seeds_do_not_bear_out_is_not_bold(
    full_store: RecordStore, experiment: Experiment, change: Callable[..., None]
) -> None:
    for seed, accuracy in enumerate((60.0, 95.0, 81.0)):  # mean below Full's, far apart
        change("LSH", seed, accuracy)
    assert bold(only_table(full_store, experiment)) == {("Full", "at 2")}


def test_a_best_that_does_not_beat_every_row_is_not_bold(full_store: RecordStore) -> None:
    for seed in range(3):
        full_store.write(replace(make_record("Full", seed), row="Twin"))
    experiment = make_experiment(rows={"Full": Row(), "Twin": Row(), "LSH": Row()})
    assert bold(only_table(full_store, experiment)) == set()


def test_a_best_of_rows_of_which_one_is_not_run_yet_is_not_bold(full_store: RecordStore) -> None:
    planned = make_experiment(rows={"Full": Row(), "Later": Row(), "LSH": Row()})
    assert bold(only_table(full_store, planned)) == set()
    published_alone = make_experiment(rows={"Full": Row(), "Later": Row(seeds={"cpu": []}), "LSH": Row()})
    assert bold(only_table(full_store, published_alone)) == {("Full", "at 2"), ("Full", "at 8")}


def test_two_seeds_make_nothing_bold(full_store: RecordStore, experiment: Experiment) -> None:
    for row in ("Full", "LSH"):
        full_store.path("paper/table2", row, 2, "cpu").unlink()
    assert bold(only_table(full_store, experiment)) == set()


@pytest.mark.parametrize(("better", "best"), [("lower", "LSH"), ("higher", "Full")])
def test_the_direction_decides_what_is_bold(full_store: RecordStore, better: str, best: str) -> None:
    experiment = make_experiment(gates={})
    experiment = replace(experiment, cell=replace(experiment.cell, better=better))
    assert bold(only_table(full_store, experiment)) == {(best, "at 2"), (best, "at 8")}


def test_a_best_that_does_not_beat_a_gate_is_not_bold(full_store: RecordStore) -> None:
    low, high = (make_experiment(gates={"chance": Gate("constant", value)}) for value in (70.0, 99.9))
    assert bold(only_table(full_store, low)) == {("Full", "at 2"), ("Full", "at 8")}
    assert bold(only_table(full_store, high)) == set()
    assert "and past the gates" in only_table(full_store, low).notes[-1]


def test_a_gate_without_a_record_makes_nothing_bold(full_store: RecordStore) -> None:
    assert bold(only_table(full_store, make_experiment(gates={"answer": Gate("majority")}))) == set()


@pytest.mark.parametrize("by", ["task", "gates"])
def test_rows_of_another_task_are_no_rivals(full_store: RecordStore, by: str) -> None:
    for seed in range(3):
        full_store.write(replace(make_record("Full", seed), row="Other"))
    of_other = Row(task="another") if by == "task" else Row()
    gates = {"answer": Gate("majority", rows=["Other"])} if by == "gates" else {}
    experiment = make_experiment(rows={"Full": Row(), "LSH": Row(), "Other": of_other}, gates=gates)
    assert bold(only_table(full_store, experiment)) == {("Full", "at 2"), ("Full", "at 8")}
    assert "column and task" in only_table(full_store, experiment).notes[-1]


def test_nothing_is_bold_where_no_direction_is_better(full_store: RecordStore) -> None:
    experiment = make_experiment()
    experiment = replace(experiment, cell=replace(experiment.cell, better="none"))
    assert bold(only_table(full_store, experiment)) == set()


def test_a_level_that_was_never_reached_is_a_result(full_store: RecordStore, experiment: Experiment) -> None:
    full_store.write(make_record("LSH", 1, metrics={"at 2": {"accuracy": 81.0}, "at 8": {"accuracy": None}}))
    table = only_table(full_store, experiment)
    assert texts(table, Kind.MISSING)["LSH", "at 8"] == "not reached"
    assert "LSH, at 8: not reached within 20 steps by 1 of 3." in table.notes


def test_words_of_a_row_come_before_its_cells(full_store: RecordStore) -> None:
    rows = {"Full": Row(text={"memory": "l^2"}), "LSH": Row(text={"memory": "l log l"})}
    table = only_table(full_store, make_experiment(rows=rows))
    assert table.columns[0] == "memory"
    assert [row.cells[0].text for row in table.blocks[0].rows] == ["l^2", "l log l"]


def test_an_unverified_value_beside_verified_ones_is_marked_alone(full_store: RecordStore) -> None:
    both = Published("verified", {"Full": {"at 8": 12.34}}, unverified={"LSH": {"at 8": 45.67}})
    table = only_table(full_store, make_experiment(published=both))
    assert texts(table, Kind.VERIFIED) == {("Full", "at 8"): "12.3"}
    assert texts(table, Kind.UNVERIFIED) == {("LSH", "at 8"): "45.7 †"}
    assert any(note.startswith("†") for note in table.notes)


def test_a_row_that_only_the_paper_has_stands_apart_and_is_never_called_not_run(full_store: RecordStore) -> None:
    only = Published("verified", {"Full": {"at 8": 12.34}}, others={"Theirs": {"at 8": 56.78}})
    table = only_table(full_store, make_experiment(published=only))
    (apart,) = [block for block in table.blocks if block.heading == "In the paper alone, not run at this size"]
    assert [row.label for row in apart.rows] == ["Theirs"]
    assert [cell.text for cell in apart.rows[0].cells] == ["56.8", "–", "–"]


def test_in_a_wide_table_such_a_row_is_among_the_papers(full_store: RecordStore) -> None:
    columns = {f"at {length}": ColumnSpec() for length in (2, 4, 6, 8)}
    only = Published("verified", others={"Theirs": {"at 8": 56.78}})
    table = only_table(full_store, make_experiment(columns=columns, published=only))
    assert [row.label for row in table.blocks[0].rows] == ["Theirs"]
    assert texts(table, Kind.VERIFIED) == {("Theirs", "at 8"): "56.8"}


def test_the_spread_that_a_paper_prints_stands_beside_its_value(full_store: RecordStore) -> None:
    spread = Published("verified", {"Full": {"at 8": 12.34}}, spread={"Full": {"at 8": 0.5}})
    table = only_table(full_store, make_experiment(published=spread))
    assert texts(table, Kind.VERIFIED) == {("Full", "at 8"): "12.3 ± 0.5"}


def test_the_papers_curves_are_a_table_of_their_own(full_store: RecordStore) -> None:
    curves = Published("verified", curves={"baseline": {400: 1.5, 500: 1.25}, "sparse": {500: 1.0}})
    experiment = make_experiment(published=curves)
    measured, table = tables(gather(full_store, experiment))
    assert not texts(measured, Kind.VERIFIED)
    assert table.columns == ("step 400", "step 500")
    assert [(row.label, [cell.text for cell in row.cells]) for row in table.blocks[0].rows] == [
        ("baseline", ["1.5", "1.3"]),
        ("sparse", ["–", "1.0"]),
    ]
    assert "was measured here" in table.caption


def test_a_row_of_another_size_keeps_the_papers_value(full_store: RecordStore) -> None:
    rows = {"Full": Row(), "LSH": Row(), "Wide": Row(only=["paper"])}
    wide = make_experiment(rows=rows, published=Published("verified", {"Wide": {"at 8": 12.34}}))
    table = only_table(full_store, wide)
    assert [row.label for row in table.blocks[1].rows] == ["Wide"]
    assert texts(table, Kind.VERIFIED) == {("Wide", "at 8"): "12.3"}
    found = item_json(wide, full_store.root)["cells"]
    assert [cell["published"] for cell in found if cell["row"] == "Wide"] == [12.34]


def test_what_was_not_run_is_shown_at_the_size_that_it_would_be_run_at(store: RecordStore) -> None:
    rows = {"Small": Row(only=["cpu"]), "Wide": Row(only=["paper"])}
    unrun = make_experiment(rows=rows, published=None, gates={}, claims=[], sizes={"paper": [], "cpu": []})
    assert [row.label for row in only_table(store, unrun).blocks[-1].rows] == ["Small"]


def test_a_table_with_a_time_says_that_times_of_items_do_not_compare(full_store: RecordStore) -> None:
    said = "Times of different items were taken on other days, machines or allocators; compare ratios within one item."
    seconds = CellFormat("accuracy", "s", "lower", "{:.1f}")
    assert said in only_table(full_store, make_experiment(cell=seconds)).notes
    assert said not in only_table(full_store, make_experiment()).notes
    assert said not in only_table(RecordStore(full_store.root / "none"), make_experiment(cell=seconds)).notes


def test_a_caption_calls_the_quantity_as_its_first_column_does(full_store: RecordStore) -> None:
    columns = {"at 8": ColumnSpec(), "at 2": ColumnSpec(cell=CellFormat("accuracy", "s"))}
    table = only_table(full_store, make_experiment(columns=columns))
    assert "Measured at size cpu on duplicate (length 256): at 8 (%), higher is better;" in table.caption
    assert "accuracy (%), higher is better;" in only_table(full_store, make_experiment()).caption
    two = {"at 8": ColumnSpec(), "at 2": ColumnSpec()}
    assert "accuracy (%), higher is better;" in only_table(full_store, make_experiment(columns=two)).caption


def test_a_unit_that_is_the_quantity_s_name_is_said_once(full_store: RecordStore) -> None:
    columns = {"bits a byte": ColumnSpec()}
    for name, spec in (("bits a byte", columns), ("at 8", {"at 8": ColumnSpec(overrides=["a=1"])})):
        for seed in range(3):
            for row in ("Full", "LSH"):
                full_store.write(make_record(row, seed, metrics={name: {"bits_per_dim": 2.5}}))
        cell = CellFormat("bits_per_dim", "bits/byte", "lower", "{:.3f}")
        table = only_table(full_store, make_experiment(columns=spec, cell=cell, claims=[], published=None))
        assert "on duplicate (length 256): bits/byte, lower is better;" in table.caption


def test_a_caption_names_one_unit_and_no_metric_of_the_code(full_store: RecordStore) -> None:
    columns = {"at 8": ColumnSpec(parameters={"width": 8})}
    for seed in range(3):
        for row in ("Full", "LSH"):
            full_store.write(make_record(row, seed, metrics={"at 8": {"block_milliseconds": 0.05}}))
    cell = CellFormat("block_milliseconds", "ms", "lower", "{:.3f}")
    table = only_table(full_store, make_experiment(columns=columns, cell=cell, claims=[]))
    assert "time of a block (µs), lower is better;" in table.caption


def test_a_printed_value_is_shown_with_its_own_digits(full_store: RecordStore) -> None:
    paper = Published("verified", {"Full": {"at 8": Printed(12.34, Decimal("12.340"))}})
    assert texts(only_table(full_store, make_experiment(published=paper)), Kind.VERIFIED) == {
        ("Full", "at 8"): "12.340"
    }


def test_a_column_of_another_size_is_shown_where_the_paper_prints_it(full_store: RecordStore) -> None:
    columns = {
        "at 2": ColumnSpec(),
        "at 4": ColumnSpec(only=["paper"]),
        "at 6": ColumnSpec(only=["paper"]),
        "at 8": ColumnSpec(),
        "at 9": ColumnSpec(),
    }
    for seed in range(3):
        for row in ("Full", "LSH"):
            metrics = {column: {"accuracy": 80.0 + seed} for column in ("at 2", "at 8", "at 9")}
            full_store.write(make_record(row, seed, metrics=metrics))
    paper = Published("verified", {"Full": {"at 4": 12.34, "at 8": 23.45}})
    table = only_table(full_store, make_experiment(columns=columns, published=paper))
    assert table.columns == ("at 2", "at 4", "at 8", "at 9")
    theirs, ours, gates = table.blocks
    assert [cell.text for cell in theirs.rows[0].cells] == ["–", "12.3", "23.5", "–"]
    assert [cell.text for cell in ours.rows[0].cells] == ["81.0 ± 1.0", "–", "81.0 ± 1.0", "81.0 ± 1.0"]
    assert [cell.text for cell in gates.rows[0].cells] == ["1.0", "–", "1.0", "1.0"]


@pytest.mark.parametrize(
    ("of_lsh", "said"),
    [
        ([85, 85, 85], "Full and LSH cross at 4 (between 2 and 8; by seed 4)."),
        ([85, 85, 79], "Full and LSH cross in 2 of 3 seeds, at 4."),
        ([91, 79], "Full and LSH cross in no seed, only in the means (between 2 and 8)."),
        ([91, 91, 91], "Full and LSH do not cross here (Full stays below LSH from 2 to 8)."),
    ],
)
def test_a_crossing_that_not_every_seed_has_is_no_number_of_the_means(
    store: RecordStore, of_lsh: list[int], said: str
) -> None:
    """Full falls from 90.3125 to 80 and is at 85, its geometric mean, half way on the logarithmic axis."""
    for seed, level in enumerate(of_lsh):
        for row, at_2, at_8 in (("Full", 90.3125, 80.0), ("LSH", level, level)):
            store.write(make_record(row, seed, metrics={"at 2": {"accuracy": at_2}, "at 8": {"accuracy": at_8}}))
    figure = {"x": "length", "crossings": [{"between": ["Full", "LSH"]}]}
    assert said in only_table(store, make_experiment(figure=figure, published=None)).notes


def test_uneven_timings_are_counted_below_their_table(store: RecordStore) -> None:
    for seed in range(3):
        for row in ("Full", "LSH"):
            record = make_record(row, seed)
            uneven = float(row == "LSH" and seed > 0)
            store.write(replace(record, metrics={c: {**m, "uneven": uneven} for c, m in record.metrics.items()}))
    notes = only_table(store, make_experiment()).notes
    assert any(note.startswith("In 2 of 6 runs the slowest token took more than 2 times as long") for note in notes)
    assert not any("other work" in note for note in only_table(store, make_experiment(chosen=["Full"])).notes)


def test_below_uneven_timings_it_stands_what_the_host_kept(store: RecordStore) -> None:
    for seed in range(2):
        record = make_record("Full", seed)
        of_host = {"uneven": 1.0, "stolen": 0.25 + seed}
        store.write(replace(record, metrics={c: {**m, **of_host} for c, m in record.metrics.items()}))
    notes = only_table(store, make_experiment(chosen=["Full"])).notes
    assert any(
        note.startswith("In 2 of 2 runs")
        and note.endswith("The host of this virtual machine kept 0.2 to 1.2 % of its processors' time meanwhile.")
        for note in notes
    )

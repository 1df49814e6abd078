from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from efftx.cli import main
from efftx.errors import UserError
from efftx.study.experiment import Derived
from efftx.study.experiments import Experiments, load_experiments, read_experiment, select
from efftx.study.gates import Gate
from efftx.study.published import Printed

SMALL = """\
# A paper, page 3.
#   efftx reproduce paper/item

id: paper/item
caption: a table
kind: train
cell: {metric: accuracy, unit: "%", better: higher, format: "{:.1f}"}
base: [model=one]
sizes: {cpu: [steps=9], smoke: [steps=1]}
rows:
  A: [width=1]
  B: {overrides: [width=2], sizes: {cpu: [chunk=4]}, seeds: {cpu: [7]}, only: [cpu]}
columns:
  x: {}
  y: {overrides: [rounds=2], instead_of_row: true, sizes: {cpu: [chunk=8]}, carry: {A: swap}}
  z: {overrides: [rounds=3], carry: turn, only: [cpu]}
seeds: {cpu: [0, 1]}
gates: {chance: {kind: constant, value: 1}}
published: {source: verified, values: {A: {x: 99}}}
claims: [{says: so, kind: at least, holds_if: 'cell[row, "x"] > 1'}]
"""


def write(folder: Path, text: str = SMALL, name: str = "item") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_a_file_is_read_with_its_head(tmp_path: Path) -> None:
    e = read_experiment(write(tmp_path))
    assert (e.id, e.paper, e.kind) == ("paper/item", "paper", "train")
    assert e.head == "A paper, page 3.\n  efftx reproduce paper/item"
    assert e.gates == {"chance": Gate("constant", 1.0)}
    assert e.published is not None
    assert e.published.of("A", "x") == 99.0
    assert e.published.of("A", "y") is None
    assert e.sizes_known() == ["cpu", "smoke"]


def test_a_value_is_either_verified_or_not(tmp_path: Path) -> None:
    text = SMALL.replace("values: {A: {x: 99}}", "values: {A: {x: 99}}, unverified: {A: {x: 98}}")
    with pytest.raises(UserError, match="has a verified value"):
        read_experiment(write(tmp_path, text))


def test_an_id_of_an_earlier_release_is_answered_with_the_new_one(tmp_path: Path) -> None:
    e = read_experiment(write(tmp_path, SMALL.replace("caption:", "formerly: [paper/old]\ncaption:")))
    with pytest.raises(UserError, match="'paper/old' is called paper/item now"):
        select(Experiments({e.id: e}), ["paper/old"])


def test_an_old_id_that_is_another_items_today_is_that_item(tmp_path: Path) -> None:
    e = read_experiment(write(tmp_path, SMALL.replace("caption:", "formerly: [paper/other]\ncaption:")))
    other = read_experiment(write(tmp_path, SMALL.replace("paper/item", "paper/other"), "other"))
    assert select(Experiments({e.id: e, other.id: other}), ["paper/other"]) == [other]


def test_an_item_was_not_formerly_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="formerly: 'paper/item' is the item's id of today"):
        read_experiment(write(tmp_path, SMALL.replace("caption:", "formerly: [paper/item]\ncaption:")))


def test_what_carries_evidence_at_the_papers_size_alone_is_run_there(tmp_path: Path) -> None:
    assert read_experiment(write(tmp_path)).usual_size() == "cpu"
    measure = "id: paper/item\nkind: measure\nmeasure: m\ncaption: c\ncell: {metric: s}\nrows: {A: {}}\n"
    found = read_experiment(write(tmp_path, f"# head\n{measure}parameters: {{paper: {{}}, smoke: {{}}}}\n", "other"))
    assert found.usual_size() == "paper"


def test_later_overrides_win_in_the_written_order(tmp_path: Path) -> None:
    e = read_experiment(write(tmp_path))
    assert e.row_overrides("B", "cpu") == ["model=one", "size=cpu", "steps=9", "width=2", "chunk=4"]
    assert e.row_overrides("A", "smoke") == ["model=one", "size=smoke", "steps=1", "width=1"]
    assert e.column_overrides("A", "z", "cpu") == [*e.row_overrides("A", "cpu"), "rounds=3"]


def test_a_column_instead_of_the_row_drops_the_rows_overrides(tmp_path: Path) -> None:
    e = read_experiment(write(tmp_path))
    assert e.column_overrides("B", "y", "cpu") == ["model=one", "size=cpu", "steps=9", "rounds=2", "chunk=8"]


def test_how_a_checkpoint_carries_over_depends_on_the_row(tmp_path: Path) -> None:
    e = read_experiment(write(tmp_path))
    assert [e.carry_of(row, "y", "cpu") for row in "AB"] == ["swap", None]
    assert [e.carry_of(row, "z", "cpu") for row in "AB"] == ["turn", "turn"]
    assert e.carry_of("A", "x", "cpu") is None


def test_rows_and_columns_exist_at_their_sizes_only(tmp_path: Path) -> None:
    e = read_experiment(write(tmp_path))
    assert list(e.rows_at("cpu")) == ["A", "B"]
    assert list(e.rows_at("smoke")) == ["A"]
    assert e.columns_at("smoke") == ["x", "y"]
    assert e.seeds_of("B", "cpu") == [7]
    assert e.seeds_of("A", "cpu") == [0, 1]
    assert e.seeds_of("A", "smoke") == [0]


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("caption:", "captoin:", "there is no key 'captoin'", "caption"),
        ("metric: accuracy, ", "metrc: accuracy, ", r"cell: there is no key 'metrc'", "metric"),
        ("caption: a table\n", "", "'caption' is missing", ""),
        ("kind: train", "kind: trane", "'trane' is neither", "train"),
        ("kind: train", "kind: measure", "measure", ""),
        ("better: higher", "better: bigger", "bigger", ""),
        ('"{:.1f}"', '"{:.1q}"', "does not format", ""),
        ('"{:.1f}"', '"{:.1f} {x}"', "does not format", ""),
        ("seeds: {cpu: [0, 1]}", "seeds: {cqu: [0, 1]}", "no size 'cqu'", "cpu"),
        ("seeds: {cpu: [0, 1]}", "seeds: {cpu: [zero]}", r"seeds.cpu\[0\]: a whole number", ""),
        ("seeds: {cpu: [0, 1]}", "seeds: {cpu: [true]}", "a whole number", ""),
        ("source: verified", "source: rumour", "rumour", ""),
        ("values: {A: {x: 99}}", "values: {C: {x: 99}}", "no row 'C'", ""),
        ("values: {A: {x: 99}}", "values: {A: {w: 99}}", "no column 'w'", ""),
        ("values: {A: {x: 99}}", "values: {A: {x: many}}", "a number is wanted", ""),
        ('cell[row, "x"] > 1', 'cell[row, "w"] > 1', "cell has no 'w'", ""),
        ('cell[row, "x"] > 1', 'cell["C", "x"] > 1', "cell has no 'C'", ""),
        ('cell[row, "x"] > 1', 'cell["A", "x"] > gate["luck"]', "gate has no 'luck'", "chance"),
        ('cell[row, "x"] > 1', "open(1) > 1", "not in the language", ""),
        ("kind: at least", "kind: at lest", "no kind 'at lest'", "at least"),
        ("kind: at least, ", "", "the key 'kind' is missing", ""),
        ("kind: at least", "kind: at least, margin: 1", "a margin", ""),
        ("id: paper/item", "id: ../item/x", "paper/item", ""),
        ("id: paper/item", "id: item", "paper/item", ""),
        ("  A: [width=1]", "  a b: [width=1]\n  a-b: [width=3]\n  A: [width=1]", "same file", ""),
        ("  A: [width=1]", "  A: [width=1]\n  A: [width=3]", "stands twice", ""),
        ("  A: [width=1]", "  A: width", "rows.A: a mapping is wanted", ""),
        ("base: [model=one]", "base: [model=one", "not valid YAML", ""),
    ],
)
def test_a_mistake_is_named_with_file_and_key(tmp_path: Path, old: str, new: str, message: str, hint: str) -> None:
    assert old in SMALL
    path = write(tmp_path, SMALL.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as refused:
        read_experiment(path)
    assert str(path) in refused.value.message
    assert hint in refused.value.hint


@pytest.mark.parametrize("text", ["", "- a list", "only text", "\xff"])
def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"x\.yaml"):
        read_experiment(path)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not valid YAML"):
        read_experiment(write(tmp_path, SMALL + "notes: [!!python/object/apply:os.getcwd []]\n"))


def test_the_users_own_experiments_stand_beside_the_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    shipped = load_experiments()
    assert "paper/item" not in shipped
    monkeypatch.setenv("EFFTX_EXPERIMENTS", str(tmp_path))
    assert set(load_experiments()) == {*shipped, "paper/item"}
    monkeypatch.delenv("EFFTX_EXPERIMENTS")
    assert set(load_experiments(tmp_path)) == {*shipped, "paper/item"}


def test_of_two_files_with_one_id_the_second_is_left_out_and_its_item_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, name="again")
    found = load_experiments(tmp_path)
    with pytest.raises(UserError, match="has the id 'paper/item' too"):
        select(found, ["paper/item"])
    assert select(found, ["reformer/table2"])


@pytest.mark.parametrize(
    ("broken", "id"),
    [
        ("id: paper/broken\nkind: [\n", "own/broken"),
        (f"{SMALL.replace('paper/item', 'paper/broken')}surplus: 1\n", "paper/broken"),
        (SMALL.replace("paper/item", "paper/broken").replace("> 1", "> 1 / 0"), "paper/broken"),
        ("", "own/broken"),
    ],
)
def test_a_users_file_that_cannot_be_read_stops_its_own_item_alone(tmp_path: Path, broken: str, id: str) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "broken.yaml").write_text(broken)
    write(folder)
    shipped, found = load_experiments(), load_experiments(folder)
    assert set(found) == {*shipped, "paper/item"}
    assert [file.id for file in found.unreadable] == [id]
    assert "broken.yaml" in found.unreadable[0].error.message
    assert select(found, ["reformer/table2", "paper/item"])
    assert len(select(found, ["all"])) == len(found)
    with pytest.raises(UserError, match=r"broken\.yaml"):
        select(found, [id])


def test_commands_name_a_users_file_that_cannot_be_read_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "broken.yaml").write_text("id: own/broken\nrows: 3\n")
    monkeypatch.setenv("EFFTX_EXPERIMENTS", str(tmp_path / "own"))
    monkeypatch.setenv("EFFTX_RESULTS", str(tmp_path / "results"))
    assert main(["list", "--json"]) == 0
    (line,) = [i for i in json.loads(capsys.readouterr().out)["items"] if i["id"] == "own/broken"]
    assert line["state"] == "not runnable"
    assert "broken.yaml" in line["why"]
    assert main(["report", "reformer/table2"]) == 0
    assert "broken.yaml" not in capsys.readouterr().err
    for words in (["report", "own/broken"], ["reproduce", "own/broken", "size=smoke"], ["list", "own"]):
        assert main(words) == 2
        told = capsys.readouterr()
        assert "broken.yaml" in told.err + told.out
    assert main(["report", "--json"]) == 1
    assert "broken.yaml" in json.loads(capsys.readouterr().out)["damaged"][0]


def test_a_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFTX_EXPERIMENTS", "/no/such/folder")
    with pytest.raises(UserError, match="/no/such/folder"):
        load_experiments()


def test_items_are_an_id_a_paper_or_all() -> None:
    every = load_experiments()
    assert [e.id for e in select(every, ["reformer/table2"])] == ["reformer/table2"]
    assert {e.id for e in select(every, ["reformer"])} == {id for id in every if id.startswith("reformer/")}
    assert len(select(every, ["all", "reformer"])) == len(every)
    with pytest.raises(UserError) as unknown:
        select(every, ["reformer/tabel2"])
    assert "reformer/table2" in unknown.value.hint


def test_a_level_is_reached_at_its_first_step() -> None:
    curve = [{"step": 30.0, "a": 99.5}, {"step": 10.0, "a": 50.0}, {"step": 20.0, "a": 99.0}, {"step": 5.0, "b": 100.0}]
    assert Derived("a", first_at_least=99).value(curve) == 20
    assert Derived("a", first_at_most=60).value(curve) == 10
    assert Derived("a", first_at_least=99.9).value(curve) is None
    assert Derived("a", first_at_least=1).value([]) is None


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ("{source: verified}", "neither a value nor a curve"),
        ("{source: seen, values: {A: {x: 99}}}", "'seen' is neither verified nor unverified"),
        ("{source: verified, values: {A: {x: 99}}, others: {A: {y: 9}}}", "'A' is a row of the table"),
        ("{source: verified, others: {C: {u: 9}}}", "there is no column 'u'"),
        ("{source: verified, values: {A: {x: 99}}, spread: {A: {y: 9}}}", "'y' has no value beside it"),
        ("{source: verified, values: {A: {x: 99}}, spread: {C: {x: 9}}}", "there is no row 'C'"),
        ("{source: verified, curves: {C: {}}}", "'C' has no points"),
    ],
)
def test_what_a_paper_cannot_print_is_refused(tmp_path: Path, published: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_experiment(write(tmp_path, SMALL.replace("{source: verified, values: {A: {x: 99}}}", published)))


def test_a_row_of_the_papers_alone_and_its_curves_are_read(tmp_path: Path) -> None:
    published = "{source: verified, others: {C: {x: 9}}, curves: {average of baselines: {400000: 1.605}}}"
    e = read_experiment(write(tmp_path, SMALL.replace("{source: verified, values: {A: {x: 99}}}", published)))
    assert e.published is not None
    assert (e.published.of("C", "x"), e.published.source_of("C", "x")) == (9.0, "verified")
    assert e.published.curves == {"average of baselines": {400000: 1.605}}
    assert e.cell_of("C", "x").unit == "%"


@pytest.mark.parametrize(
    ("given", "message"),
    [("by: theirs", "'theirs' is neither paper nor ours"), ("quote: so it is", "'so' is not the paper's")],
)
def test_a_claim_is_the_papers_or_ours_and_only_a_paper_is_quoted(tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_experiment(write(tmp_path, SMALL.replace("says: so,", f"says: so, {given},")))


def test_a_claim_may_ask_for_what_only_the_paper_has(tmp_path: Path) -> None:
    text = SMALL.replace("values: {A: {x: 99}}", "others: {C: {x: 99}}")
    claim = 'holds_if: \'cell[row, "x"] > published["C", "x"]\''
    e = read_experiment(write(tmp_path, text.replace("holds_if: 'cell[row, \"x\"] > 1'", claim)))
    assert "published" in e.claims[0].holds_if
    with pytest.raises(UserError, match="cell has no 'C'"):
        read_experiment(write(tmp_path, text.replace('cell[row, "x"]', 'cell["C", "x"]'), "other"))


@pytest.mark.parametrize("metric", ["parameters", "flops_per_token"])
def test_a_measure_shows_nothing_that_is_counted_of_a_training(metric: str, tmp_path: Path) -> None:
    measure = "id: paper/item\nkind: measure\nmeasure: m\ncaption: c\ncell: {metric: %s}\nrows: {A: {}}\n"
    text = measure + "parameters: {cpu: {}}\n"
    assert read_experiment(write(tmp_path, text % "total")).cell.metric == "total"
    with pytest.raises(UserError, match=f"'{metric}' is what the model of a training costs"):
        read_experiment(write(tmp_path, text % metric))


def test_a_printed_value_keeps_the_digits_of_the_file(tmp_path: Path) -> None:
    published = """\
published:
  source: verified
  values: {A: {x: 2.80, y: 581}}
  spread: {A: {x: 0.004}}
  others: {C: {x: 0x10}}
  curves: {average: {400000: 1.580}}
"""
    e = read_experiment(
        write(tmp_path, SMALL.replace("published: {source: verified, values: {A: {x: 99}}}\n", published))
    )
    assert e.published is not None
    assert e.published.of("A", "x") == 2.8
    written = [e.published.of("A", "x"), e.published.of("A", "y"), e.published.spread_of("A", "x")]
    written.append(e.published.curves["average"][400000])
    assert [str(value.digits) for value in written if isinstance(value, Printed)] == ["2.80", "581", "0.004", "1.580"]
    copy = pickle.loads(pickle.dumps(e.published))
    assert str(copy.of("A", "x").digits) == "2.80"
    assert e.published.of("C", "x") == 16.0

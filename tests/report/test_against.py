from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from efftx.cli import main
from efftx.errors import UserError
from efftx.report.against import SideBySide, as_json, compare, html, print_against, table
from efftx.study.records import RecordStore

from .conftest import make_experiment, make_record


@pytest.fixture
def other(tmp_path: Path) -> RecordStore:
    """LSH is 15 higher than in `full_store` and better than Full; of Full a seed is missing and one is another run."""
    store = RecordStore(tmp_path / "other")
    for seed in range(3):
        top = 95.0 + seed
        metrics = {"at 2": {"accuracy": top}, "at 8": {"accuracy": top - 10}}
        store.write(make_record("LSH", seed, metrics=metrics))
    store.write(make_record("Full", 0))
    store.write(make_record("Full", 1, hash="another"))
    return store


@pytest.fixture
def found(full_store: RecordStore, other: RecordStore) -> list[SideBySide]:
    return compare(full_store, other.root, [make_experiment(), make_experiment(id="paper/none")])


def test_cells_stand_side_by_side_with_their_difference(found: list[SideBySide]) -> None:
    (item,) = found
    cells = {row.label: [cell.text for cell in row.cells] for block in table(item).blocks for row in block.rows}
    assert cells == {
        "Full, at 2 (%)": ["91.0 ± 1.0 (n = 3)", "90.5 ± 0.7 (n = 2)", "+0.5"],
        "Full, at 8 (%)": ["81.0 ± 1.0 (n = 3)", "80.5 ± 0.7 (n = 2)", "+0.5"],
        "LSH, at 2 (%)": ["81.0 ± 1.0 (n = 3)", "96.0 ± 1.0 (n = 3)", "-15.0"],
        "LSH, at 8 (%)": ["71.0 ± 1.0 (n = 3)", "86.0 ± 1.0 (n = 3)", "-15.0"],
    }
    assert table(item).notes == ("Another configuration there: Full.",)


def test_the_verdicts_of_both_are_told(found: list[SideBySide]) -> None:
    assert found[0].claims == (("full attention is better at 8", "holds", "undecided"),)
    assert found[0].changed == list(found[0].claims)


def test_what_one_of_them_lacks_is_not_run_there(full_store: RecordStore, tmp_path: Path) -> None:
    (tmp_path / "empty" / "records").mkdir(parents=True)
    (item,) = compare(full_store, tmp_path / "empty", [make_experiment()])
    assert {row.cells[1].text for row in table(item).blocks[0].rows} == {"not run"}
    assert {row.cells[2].text for row in table(item).blocks[0].rows} == {"–"}
    assert item.claims == (("full attention is better at 8", "holds", ""),)


def test_json_has_exact_numbers(full_store: RecordStore, other: RecordStore, found: list[SideBySide]) -> None:
    told = as_json(full_store, other.root, found)
    assert (told["here"], told["there"]) == (str(full_store.root), str(other.root))
    (item,) = told["items"]
    assert item["cells"][2] == {
        "row": "LSH",
        "column": "at 2",
        "here": {"mean": 81.0, "std": 1.0, "n": 3},
        "there": {"mean": 96.0, "std": 1.0, "n": 3},
        "difference": -15.0,
        "same_configuration": True,
    }
    assert item["cells"][0]["same_configuration"] is False
    assert item["claims"] == [{"says": "full attention is better at 8", "here": "holds", "there": "undecided"}]


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_both_and_the_verdicts_that_differ(found: list[SideBySide], width: int) -> None:
    out = io.StringIO()
    print_against(found, Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert all(cell_len(line) <= width for line in lines)
    assert any("81.0 ± 1.0 (n = 3)  96.0 ± 1.0 (n = 3)       -15.0" in line for line in lines)
    assert "✓ holds here, ≈ undecided there: full attention is better at 8" in out.getvalue()


def test_the_page_shows_both(full_store: RecordStore, other: RecordStore, found: list[SideBySide]) -> None:
    page = html(full_store, other.root, found)
    assert '✓ holds</span> here, <span class="badge open">≈ undecided</span> there' in page
    assert '<td class="measured">-15.0</td>' in page


def test_what_is_no_results_folder_is_one_message(full_store: RecordStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder of results"):
        compare(full_store, tmp_path / "nowhere", [])
    with pytest.raises(UserError, match="is this results folder itself"):
        compare(full_store, full_store.root / ".." / full_store.root.name, [])


def test_the_terminal_shows_what_differs_and_counts_the_rest(full_store: RecordStore, tmp_path: Path) -> None:
    def told() -> str:
        out = io.StringIO()
        print_against(compare(full_store, theirs.root, [make_experiment()]), Console(file=out, width=120))
        return out.getvalue()

    theirs = RecordStore(tmp_path / "theirs")
    for record in full_store.read_all("paper/table2"):
        theirs.write(record)
    assert told() == "The same in both: 4 cells.\n"
    theirs.write(make_record("LSH", 1, metrics={"at 2": {"accuracy": 81.0}, "at 8": {"accuracy": 75.0}}))
    assert "LSH, at 8" in told()
    assert "LSH, at 2" not in told()
    assert "Full" not in told()
    assert told().endswith("The same in both: 3 cells.\n")


def test_the_command_prints_writes_and_answers_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, theirs = Path(__file__).parents[2] / "results", tmp_path / "theirs"
    shutil.copytree(results / "records" / "reformer/table1", theirs / "records" / "reformer/table1")
    monkeypatch.setenv("EFFTX_RESULTS", str(results))
    page = tmp_path / "both.html"
    assert main(["report", "reformer/table1", "--against", str(theirs), "--html", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {cell["difference"] for item in told["items"] for cell in item["cells"]} == {0.0}
    assert told["page"] == str(page)
    assert page.read_text().startswith("<!doctype html>")
    assert main(["report", "--html", str(page)]) == 2
    assert "--html goes with --against" in capsys.readouterr().err

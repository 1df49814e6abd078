from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from efftx.errors import UserError
from efftx.report.build import build_report, check_report
from efftx.report.items import gather
from efftx.report.render import item_latex
from efftx.report.show import item_json, print_item
from efftx.study.experiment import Cell, Claim, ColumnSpec, Experiment
from efftx.study.published import Published
from efftx.study.records import RecordStore, Verification

from .conftest import ENVIRONMENT, make_experiment, make_record

FIGURE = {"over": "columns", "x": "length", "y": "accuracy"}


@pytest.fixture
def drawn() -> Experiment:
    return make_experiment(figure=FIGURE)


def test_the_report_is_documents_data_figures_an_index_and_a_page(full_store: RecordStore, drawn: Experiment) -> None:
    names = [path.name for path in build_report(full_store.root, [drawn])]
    assert names == [
        "README.md",
        "index.html",
        "paper-table2-cpu.csv",
        "paper-table2-cpu.svg",
        "paper-table2-published.csv",
        "paper-table2-published.svg",
        "paper-table2.csv",
        "paper-table2.md",
        "paper-table2.tex",
    ]
    assert check_report(full_store.root, [drawn]) == []


def test_a_changed_record_makes_the_check_fail(
    full_store: RecordStore, drawn: Experiment, change: Callable[..., None]
) -> None:
    build_report(full_store.root, [drawn])
    change("LSH", 1, 71.2)
    differing = {line.split(":")[0] for line in check_report(full_store.root, [drawn])}
    assert differing == {
        "index.html",
        "paper-table2-cpu.csv",
        "paper-table2-cpu.svg",
        "paper-table2.csv",
        "paper-table2.md",
        "paper-table2.tex",
    }


def test_a_missing_a_strange_and_an_edited_file_are_named(full_store: RecordStore, drawn: Experiment) -> None:
    build_report(full_store.root, [drawn])
    folder = full_store.root / "report"
    (folder / "paper-table2.csv").unlink()
    (folder / "other.md").write_text("what is this")
    (folder / "README.md").write_text((folder / "README.md").read_text().replace("Report", "report"))
    assert check_report(full_store.root, [drawn]) == [
        "README.md: differs from line 1",
        "other.md: the records give no such file",
        "paper-table2.csv: missing",
    ]


def test_a_report_that_was_never_written_is_missing(full_store: RecordStore, drawn: Experiment) -> None:
    assert "index.html: missing" in check_report(full_store.root, [drawn])


def test_building_again_removes_what_the_records_no_longer_give(full_store: RecordStore, drawn: Experiment) -> None:
    build_report(full_store.root, [drawn])
    build_report(full_store.root, [make_experiment()])
    assert not (full_store.root / "report" / "paper-table2-cpu.svg").exists()
    assert check_report(full_store.root, [make_experiment()]) == []


def test_drawings_of_another_matplotlib_are_compared_by_their_data(
    full_store: RecordStore, drawn: Experiment, change: Callable[..., None]
) -> None:
    build_report(full_store.root, [drawn])
    folder = full_store.root / "report"
    page = (folder / "index.html").read_text()
    (folder / "index.html").write_text(
        re.sub(r"matplotlib [0-9.]+", "matplotlib 3.8.0.", page).replace("M 0 0", "M 1 1")
    )
    (folder / "paper-table2-cpu.svg").write_text("<svg>drawn otherwise</svg>")
    assert check_report(full_store.root, [drawn]) == []
    change("LSH", 1, 71.2)
    assert any(line.startswith("paper-table2-cpu.csv") for line in check_report(full_store.root, [drawn]))
    assert any(line.startswith("index.html") for line in check_report(full_store.root, [drawn]))


PROGRAM = """
import sys
from pathlib import Path

from tests.report.conftest import make_experiment, make_record
from efftx.report.build import build_report
build_report(sys.argv[1], [make_experiment(figure={"over": "columns", "x": "length"})], out=Path(sys.argv[2]))
"""


def test_two_processes_write_the_same_bytes(full_store: RecordStore, tmp_path: Path) -> None:
    written = []
    for seed in ("1", "2"):
        out = tmp_path / f"there-{seed}"
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": f"UTC-{seed}", "LC_ALL": "C", "COLUMNS": "40"}
        root = Path(__file__).parents[2]
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(full_store.root), str(out)], env=environment, check=True, cwd=root
        )
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert len(written[0]) == 9
    assert written[0] == written[1]


def test_the_report_names_no_folder_of_this_machine(full_store: RecordStore, tmp_path: Path) -> None:
    experiment = make_experiment(figure=FIGURE, path=str(tmp_path / "table2.yaml"))
    for path in build_report(full_store.root, [experiment]):
        assert str(tmp_path) not in path.read_text(), path.name


def test_a_record_that_no_longer_comes_out_makes_the_item_stale(full_store: RecordStore, drawn: Experiment) -> None:
    record = make_record("LSH", 1)
    full_store.write_verification(record, Verification(record.hash, "stale", "number 1 was 4.8, is 4.9", True))
    build_report(full_store.root, [drawn])
    for name in ("paper-table2.md", "index.html", "README.md"):
        text = (full_store.root / "report" / name).read_text()
        assert "stale" in text, name
    assert "LSH, seed 1, size cpu: number 1 was 4.8, is 4.9" in (full_store.root / "report" / "index.html").read_text()
    assert item_json(drawn, full_store.root)["state"] == "stale"


@pytest.mark.parametrize(
    ("missing", "state"), [([], "recorded"), ([("LSH", 2)], "partial"), ([("Full", 0), ("LSH", 0)], "partial")]
)
def test_the_state_counts_the_runs(
    full_store: RecordStore, experiment: Experiment, missing: list[tuple[str, int]], state: str
) -> None:
    for row, seed in missing:
        full_store.path("paper/table2", row, seed, "cpu").unlink()
    found = item_json(experiment, full_store.root)
    assert found["state"] == state
    assert found["why"] == (f"size cpu: {6 - len(missing)} of 6 runs" if missing else "")


def test_a_cost_that_the_record_has_needs_no_evaluation(full_store: RecordStore) -> None:
    cost = ColumnSpec(cell=Cell("parameters"))
    counted = make_experiment(columns={**make_experiment().columns, "parameters": cost})
    assert gather(full_store, counted).state == "partial"
    for record in full_store.read_all(counted.id):
        full_store.write(replace(record, costs={"parameters": 9.0}))
    assert gather(full_store, counted).state == "recorded"


def test_a_smoke_run_does_not_make_an_item_recorded_where_there_is_another(full_store: RecordStore) -> None:
    experiment = make_experiment(sizes={"cpu": [], "smoke": []}, seeds={"cpu": [0, 1, 2], "smoke": [0]})
    for row in ("Full", "LSH"):
        full_store.write(make_record(row, 0, size="smoke"))
    full_store.path("paper/table2", "LSH", 2, "cpu").unlink()
    assert item_json(experiment, full_store.root)["state"] == "partial"


def test_json_holds_exact_cells_and_the_verdicts(full_store: RecordStore, experiment: Experiment) -> None:
    found = item_json(experiment, full_store.root)
    assert found["id"] == "paper/table2"
    assert found["cells"][1] == {
        "row": "Full",
        "column": "at 8",
        "size": "cpu",
        "mean": 81.0,
        "std": 1.0,
        "n": 3,
        "published": 12.34,
        "published_source": "verified",
    }
    (claim,) = found["claims"]
    assert (claim["says"], claim["verdict"], claim["size"]) == ("full attention is better at 8", "holds", "cpu")


def test_json_of_an_item_that_was_not_run_has_the_published_values(store: RecordStore, experiment: Experiment) -> None:
    found = item_json(experiment, store.root)
    assert found["state"] == "not run"
    assert [(cell["mean"], cell["n"], cell["published"]) for cell in found["cells"]] == [(None, 0, 12.34)]
    assert [claim["verdict"] for claim in found["claims"]] == ["not run"]


def test_json_and_latex_have_what_the_paper_alone_has(full_store: RecordStore) -> None:
    paper = Published("verified", others={"Theirs": {"at 8": 9.0}}, curves={"baseline": {400: 1.5}})
    e = make_experiment(published=paper)
    found = item_json(e, full_store.root)
    (theirs,) = [cell for cell in found["cells"] if cell["row"] == "Theirs"]
    assert (theirs["column"], theirs["published"], theirs["published_source"], theirs["n"]) == (
        "at 8",
        9,
        "verified",
        0,
    )
    assert found["published_curves"] == {"baseline": {400: 1.5}}
    assert [(claim["by"], claim["quote"]) for claim in found["claims"]] == [("ours", "")]
    latex = item_latex(gather(full_store, e))
    assert "\\label{tab:paper-table2-cpu}" in latex
    assert "\\label{tab:paper-table2-published}" in latex


def test_printing_shows_published_beside_measured_and_the_verdict(
    full_store: RecordStore, experiment: Experiment
) -> None:
    console = Console(file=io.StringIO(), width=120, record=True)
    print_item(experiment, full_store.root, console=console)
    text = console.export_text()
    assert "paper/table2: recorded" in text
    assert re.search(r"Full\s+12\.3 +91\.0 ± 1\.0 +81\.0 ± 1\.0", text)
    assert "✓ holds: full attention is better at 8" in text


def shown(experiment: Experiment, store: RecordStore, size: str = "") -> str:
    console = Console(file=io.StringIO(), width=120, record=True)
    print_item(experiment, store.root, console=console, size=size)
    return console.export_text()


def test_a_rehearsal_changes_no_report_and_is_shown_where_it_is_asked_for(full_store: RecordStore) -> None:
    experiment = make_experiment(sizes={"cpu": [], "smoke": []}, seeds={"cpu": [0, 1, 2], "smoke": [0]})
    build_report(full_store.root, [experiment])
    for row in ("Full", "LSH"):
        full_store.write(make_record(row, 0, size="smoke"))
    assert check_report(full_store.root, [experiment]) == []
    text = shown(experiment, full_store, "smoke")
    assert "paper/table2, size smoke: recorded" in text
    assert "Measured at size smoke" in text
    assert "size cpu" not in text
    assert {cell["size"] for cell in item_json(experiment, full_store.root, size="smoke")["cells"]} == {"smoke"}


def test_of_chosen_rows_these_are_shown_and_the_others_are_counted(store: RecordStore) -> None:
    for seed in range(3):
        store.write(make_record("LSH", seed))
    text = shown(make_experiment(chosen=("LSH",)), store, "cpu")
    assert "paper/table2, size cpu, chosen rows: recorded" in text
    assert "Full" not in text.split("Not shown:")[0]
    assert "not run" not in text
    assert "Not shown: 1 other row and 1 claim that they would decide; `efftx report paper/table2` shows all." in text


def test_a_damaged_record_is_left_out(full_store: RecordStore, drawn: Experiment) -> None:
    path = full_store.path("paper/table2", "LSH", 1, "cpu")
    path.write_text(path.read_text().replace("81.0", "91.0"))
    (cell,) = [c for c in item_json(drawn, full_store.root)["cells"] if (c["row"], c["column"]) == ("LSH", "at 2")]
    assert (cell["n"], cell["mean"]) == (2, 81.0)
    assert item_json(drawn, full_store.root)["state"] == "partial"
    (damage,) = full_store.damaged([drawn.id])
    assert damage.path == path


def test_a_report_that_cannot_be_written_whole_leaves_every_file_whole(
    full_store: RecordStore, drawn: Experiment, change: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_report(full_store.root, [drawn])
    folder = full_store.root / "report"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    change("LSH", 1, 71.2)
    replace_file, calls = os.replace, []

    def fill_up(*arguments: str) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        replace_file(*arguments)

    monkeypatch.setattr(os, "replace", fill_up)
    with pytest.raises(UserError, match="No space left"):
        build_report(full_store.root, [drawn])
    monkeypatch.undo()
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    build_report(full_store.root, [drawn])
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] in (before[name], written[name]) for name in after)
    assert before != after != written


def test_a_folder_where_a_file_of_the_report_goes_is_one_message(full_store: RecordStore, drawn: Experiment) -> None:
    (full_store.root / "report" / "index.html").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write under"):
        build_report(full_store.root, [drawn])


def test_what_a_killed_report_left_is_swept(full_store: RecordStore, drawn: Experiment) -> None:
    build_report(full_store.root, [drawn])
    litter = [full_store.root / "report" / ".index.html.1-0.tmp"]
    litter.append(full_store.path("paper/table2", "LSH", 1, "cpu").with_name(".x.json.1-0.tmp"))
    for path in litter:
        path.write_text("half")
    build_report(full_store.root, [drawn])
    assert not any(path.exists() for path in litter)


def test_items_stand_in_a_readers_order(store: RecordStore) -> None:
    experiments = [replace(make_experiment(), id=f"paper/{name}") for name in ("table10", "table2", "figure3")]
    build_report(store.root, experiments)
    index = (store.root / "report" / "README.md").read_text()
    assert re.findall(r"\[paper/(\w+)\]", index) == ["figure3", "table2", "table10"]


@pytest.mark.parametrize(("module", "library"), [("build", "torch"), ("show", "torch"), ("show", "matplotlib")])
def test_reading_records_needs_no_torch_and_printing_an_item_draws_nothing(module: str, library: str) -> None:
    program = f"import sys, efftx.report.{module}; sys.exit('{library}' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_machine_has_one_letter_throughout_the_report(full_store: RecordStore, experiment: Experiment) -> None:
    other = {**ENVIRONMENT, "processor": "Another processor"}
    for seed in range(3):
        for row in ("Full", "LSH"):
            full_store.write(make_record(row, seed, id="paper/table3", environment=other))
    third = replace(experiment, id="paper/table3")
    build_report(full_store.root, [experiment, third])
    here = full_store.root / "report"
    assert "- machine A: A processor;" in (here / "paper-table2.md").read_text()
    text = (here / "paper-table3.md").read_text()
    assert "- machine B: Another processor;" in text
    assert "machine A" not in text
    page = (here / "index.html").read_text()
    assert "machine A: A processor;" in page
    assert "machine B: Another processor;" in page


def test_the_list_of_items_says_what_verdicts_mean_and_names_the_contradicted(
    full_store: RecordStore, experiment: Experiment
) -> None:
    wrong = Claim("LSH is better at 8", "better", 'cell["Full", "at 8"] < cell["LSH", "at 8"]', by="paper")
    build_report(full_store.root, [replace(experiment, claims=[*experiment.claims, wrong])])
    text = (full_store.root / "report" / "README.md").read_text()
    assert "- ∅ *not tested here*: a model in it has not passed a gate: a trivial answer, or the task itself" in text
    assert "of a training its first three losses, of a timing its counts alone" in text
    assert "90 % interval" in text
    told = text[text.index("The paper's claims that are contradicted:") :]
    assert told.splitlines()[2].startswith("- [paper/table2](paper-table2.md): LSH is better at 8 – Full is 10 points")
    assert "Our claims that are contradicted" not in text
    text = (full_store.root / "report" / "paper-table2.md").read_text()
    assert "- **contradicted** (the paper's): LSH is better at 8 – " in text
    assert "- **holds** (ours): full attention is better at 8 – " in text

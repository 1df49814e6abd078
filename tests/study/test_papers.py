from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from efftx.errors import UserError
from efftx.study import papers
from efftx.study.experiments import load_experiments
from efftx.study.papers import Paper, Printed, load_papers, reading_order, shown_as


def test_every_item_that_a_paper_is_shown_by_is_shipped_and_of_that_paper() -> None:
    experiments = load_experiments()
    for paper in load_papers():
        for printed in paper.shows.values():
            for item in printed.items:
                assert experiments[item].paper == paper.name


def test_every_shipped_paper_is_listed_with_what_it_prints() -> None:
    found = {paper.name: paper for paper in load_papers()}
    assert {experiment.paper for experiment in load_experiments().values()} <= set(found)
    printed = {name: {n for n in paper.shows if n.startswith(("Table", "Figure"))} for name, paper in found.items()}
    assert printed["reformer"] == {
        *(f"Table {n}" for n in (1, 2, 3, 4)),
        *("Figure 1", "Figure 2", "Figure 3", "Figure 4", "Figure 5, left", "Figure 5, right"),
    }
    assert printed["sparse"] == {*(f"Table {n}" for n in (1, 2, 3, 4)), *(f"Figure {n}" for n in (1, 2, 3, 4, 5))}
    assert printed["scaling"] == {f"{kind} {n}" for kind in ("Table", "Figure") for n in (1, 2, 3, 4, 5, 6)}


def test_items_come_in_the_order_of_the_paper_then_what_is_ours_by_number() -> None:
    shipped = list(load_experiments().values())
    some = [
        replace(shipped[0], id=f"p/{name}", paper="p") for name in ("own10", "own2", "own\u00b2", "table1", "figure1")
    ]
    other = replace(shipped[0], id="a/table1", paper="a")
    p = Paper("P", shows={"Figure 1": Printed("", ["p/figure1"]), "Table 1": Printed("", ["p/table1"])}, name="p")
    found = [e.id for e in reading_order([other, *some], [p])]
    assert found == ["p/figure1", "p/table1", "p/own2", "p/own10", "p/own\u00b2", "a/table1"]
    assert shown_as([p]) == {"p/figure1": "Figure 1", "p/table1": "Table 1"}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{caption: a}", "either items show it, or `missing` says why"),
        ("{caption: a, items: [p/a], missing: b}", "either items show it, or `missing` says why"),
        ("{caption: a, itmes: [p/a]}", "itmes"),
    ],
)
def test_a_wrong_entry_is_named(entry: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "papers.yaml").write_text(f"p:\n  title: A\n  shows:\n    Table 1: {entry}\n")
    monkeypatch.setattr(papers, "shipped", lambda name: tmp_path)
    with pytest.raises(UserError, match=says):
        load_papers()

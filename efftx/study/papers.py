"""What each paper prints (`papers.yaml` beside the experiments), and the items in the order of their papers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from efftx.core.numbered import by_number
from efftx.core.shipped import shipped
from efftx.errors import UserError
from efftx.study.experiment import Experiment
from efftx.study.experiments import PAPERS
from efftx.study.reading import build, read_yaml


@dataclass(frozen=True)
class Printed:
    """One table or figure that a paper prints: the items that show it, or why none does."""

    caption: str
    items: list[str] = field(default_factory=list)
    missing: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper: its title, authors and place, and `shows`, from `Table 2` to what stands there, in the paper's order."""

    title: str
    source: str = ""
    shows: Mapping[str, Printed] = field(default_factory=dict)
    name: str = ""


def load_papers() -> list[Paper]:
    """The papers of `experiments/papers.yaml`; UserError names the key of a file that cannot be read."""
    path = shipped("experiments") / PAPERS
    _, content = read_yaml(path)
    papers = []
    for name, value in content.items():
        paper = replace(build(Paper, value, f"{path}: {name}"), name=name)
        for number, printed in paper.shows.items():
            if bool(printed.items) == bool(printed.missing):
                why = f"{path}: {name}.{number}: either items show it, or `missing` says why none does"
                raise UserError("bad_experiment", why)
        papers.append(paper)
    return papers


def shown_as(papers: Iterable[Paper]) -> dict[str, str]:
    """From an item to what it shows of its paper: `reformer/table2` -> `Table 2`. Items of one's own have no entry."""
    return {item: number for paper in papers for number, printed in paper.shows.items() for item in printed.items}


def reading_order(experiments: Iterable[Experiment], papers: Sequence[Paper] = ()) -> list[Experiment]:
    """Experiments as a reader expects them: paper by paper as `papers` has them, then what no paper prints, by number.

    Numbers are read as such: table2 comes before table10. Papers that are not in `papers` come last.
    """
    order = {paper.name: i for i, paper in enumerate(papers)}
    places = {item: i for i, item in enumerate(shown_as(papers))}

    def key(e: Experiment) -> tuple[int, str, int, list[int | str]]:
        return order.get(e.paper, len(order)), e.paper, places.get(e.id, len(places)), by_number(e.id)

    return sorted(experiments, key=key)

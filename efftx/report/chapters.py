"""Items paper by paper, in each paper's own order and numbering, and what became of the claims of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from efftx.report.items import Item
from efftx.study.claims import Verdict
from efftx.study.papers import Paper, Printed

PAPER, OURS = "paper", "ours"
IN_TEXT = "In the text"
"""What the number of an entry that is neither table nor figure begins with."""
CAME_OUT, STALE, CANNOT, NOT_YET = "came out again", "no longer come out", "cannot be replayed", "not replayed yet"
_REPLAYED = {"fresh": CAME_OUT, "stale": STALE, "not replayable": CANNOT}


@dataclass(frozen=True)
class Entry:
    """One table or figure of a paper under its number, and the items that show it."""

    number: str
    printed: Printed
    items: tuple[Item, ...]

    @property
    def is_shown(self) -> bool:
        """Whether an item has a row that was run; trivial answers alone show nothing of the paper."""
        return any(
            record.row in item.experiment.rows for item in self.items for m in item.measured for record in m.records
        )


@dataclass(frozen=True)
class Chapter:
    """One paper: every table and figure that it prints, and the `own` items that it does not print."""

    paper: Paper
    entries: tuple[Entry, ...]
    own: tuple[Item, ...]

    @property
    def slug(self) -> str:
        """The chapter's anchor."""
        return f"paper-{self.paper.name}"

    @property
    def items(self) -> tuple[Item, ...]:
        """All items in the order of the page, each once."""
        by_slug = {item.slug: item for entry in self.entries for item in entry.items}
        return tuple({**by_slug, **{item.slug: item for item in self.own}}.values())

    def number_of(self, item: Item) -> str:
        """The paper's numbers of what `item` shows; empty for an item of one's own."""
        return ", ".join(entry.number for entry in self.entries if item in entry.items)

    def claims(self, by: str) -> list[tuple[Item, Verdict]]:
        """The claims that the paper makes, or those that are ours, each at its item's foremost size."""
        return [(item, v) for item in self.items for v in item.verdicts if v.claim.by == by]

    def verdicts(self, by: str) -> list[Verdict]:
        """The verdicts on those claims alone."""
        return [verdict for _, verdict in self.claims(by)]

    @property
    def n_printed(self) -> int:
        """How many tables and figures the paper prints."""
        return sum(not entry.number.startswith(IN_TEXT) for entry in self.entries)

    @property
    def n_shown(self) -> int:
        """How many of the paper's tables and figures are shown."""
        return sum(entry.is_shown for entry in self.entries if not entry.number.startswith(IN_TEXT))

    @property
    def spent(self) -> Spent:
        """What the chapter's records took, and what their replays gave."""
        return Spent.of(self.items)


@dataclass(frozen=True)
class Spent:
    """Records, what became of their replays, and the hours of the runs behind them, those of sweeps too.

    Two records of one training (two items that show the same runs) count twice as records and once as hours.
    """

    records: int
    replays: dict[str, int]
    hours: float

    @classmethod
    def of(cls, items: Iterable[Item]) -> Spent:
        """Over all sizes of all `items`."""
        seconds: dict[object, float] = {}
        replays: Counter[str] = Counter()
        for measured in (m for item in items for m in item.measured):
            for record in (*measured.records, *measured.sweeps):
                key = record.hash if record.data else (record.id, record.size, record.row, record.seed)
                seconds[key] = max(seconds.get(key, 0.0), record.wall_seconds)
            for verification in measured.verifications:
                replays[_REPLAYED[verification.verdict] if verification else NOT_YET] += 1
        order = (CAME_OUT, STALE, CANNOT, NOT_YET)
        counted = {word: replays[word] for word in order if replays[word]}
        return cls(replays.total(), counted, sum(seconds.values()) / 3600)

    @property
    def replayed(self) -> str:
        """The replays in words: `120 came out again, 24 not replayed yet`."""
        return ", ".join(f"{n:,} {word}" for word, n in self.replays.items())


def chapters(items: Sequence[Item], papers: Sequence[Paper]) -> list[Chapter]:
    """A chapter a paper, those of `papers` first and whole; then the papers that only items name."""
    by_paper = []
    named = {paper.name for paper in papers}
    others = dict.fromkeys(item.experiment.paper for item in items if item.experiment.paper not in named)
    for paper in [*papers, *(Paper(title=name, name=name) for name in others)]:
        mine = {item.experiment.id: item for item in items if item.experiment.paper == paper.name}
        entries = tuple(
            Entry(number, printed, tuple(mine[id] for id in printed.items if id in mine))
            for number, printed in paper.shows.items()
        )
        shown = {item.experiment.id for entry in entries for item in entry.items}
        by_paper.append(Chapter(paper, entries, tuple(item for id, item in mine.items() if id not in shown)))
    return by_paper


def merged(chapters: Sequence[Chapter]) -> Chapter:
    """All `chapters` as one, for what is counted over all papers."""
    entries = tuple(entry for chapter in chapters for entry in chapter.entries)
    return Chapter(Paper(title="all", name="all"), entries, tuple(item for chapter in chapters for item in chapter.own))

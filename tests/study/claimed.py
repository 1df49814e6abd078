"""An item of two rows with one claim, and the verdict on given numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from efftx.study.claims import Verdict, judge
from efftx.study.experiment import Cell, Claim, ColumnSpec, Experiment, Row
from efftx.study.gates import Gate
from efftx.study.published import Published
from efftx.study.records import Record

from ..reproduce.fakes import record

Table = Mapping[str, Mapping[str, Sequence[float | None]]]


def experiment(
    holds_if: str,
    kind: str = "better",
    *,
    margin: float | None = None,
    where: str = "",
    rows: Sequence[str] = ("A", "B"),
    columns: Sequence[str] = ("x",),
    better: str = "higher",
    gates: Mapping[str, Gate] | None = None,
    published: Published | None = None,
) -> Experiment:
    return Experiment(
        id="paper/item",
        caption="",
        kind="train",
        cell=Cell("accuracy", "%", better),
        rows={name: Row() for name in rows},
        columns={name: ColumnSpec() for name in columns},
        sizes={"cpu": []},
        claims=[Claim("it is so", kind, holds_if, where, margin)],
        gates=gates or {},
        published=published,
    )


def records(table: Table) -> list[Record]:
    """Records of a table row -> column -> value a seed."""
    found = []
    for row, columns in table.items():
        for seed in range(max(len(values) for values in columns.values())):
            found.append(record(row, seed, {c: v[seed] for c, v in columns.items() if seed < len(v)}))
    return found


def verdict(e: Experiment, table: Table) -> Verdict:
    return judge(e, records(table), "cpu")[0]


NO_WORSE = 'cell["A", "x"] >= cell["B", "x"]'
A_OVER_B = 'cell["A", "x"] > cell["B", "x"]'

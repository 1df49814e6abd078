"""What a paper prints of one table or figure: values of rows that are run here, of rows that are not, and curves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Self

from efftx.errors import nearest

Values = Mapping[str, Mapping[str, float]]


class Printed(float):
    """A value with the digits that the paper prints: 2.80 has three where the number 2.8 has two."""

    digits: Decimal

    def __new__(cls, value: float, digits: Decimal) -> Self:
        """`value`, which `digits` write."""
        made = super().__new__(cls, value)
        made.digits = digits
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """What a copy is made of."""
        return float(self), self.digits


@dataclass(frozen=True)
class Published:
    """What the paper prints, row by row and column by column; never mixed with what was measured here.

    source      of `values`, `others` and `curves`: `verified` (read in the paper) or `unverified`.
    values      row -> column -> value.
    note        how they were read and what stays open.
    unverified  values beside verified ones that were not read in the paper.
    spread      row -> column -> the spread that the paper prints beside a value of `values` (±).
    others      as `values`, of rows that the paper alone has: nothing here is run beside them.
    curves      series -> x (a training step) -> value read off the paper's plot, in the unit of the table's cell; shown
                beside what was measured and never in the same axes.
    """

    source: str
    values: Values = field(default_factory=dict)
    note: str = ""
    unverified: Values = field(default_factory=dict)
    spread: Values = field(default_factory=dict)
    others: Values = field(default_factory=dict)
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def of(self, row: str, column: str) -> float | None:
        """The paper's value of one cell, None where it has none."""
        for table in (self.values, self.unverified, self.others):
            if column in table.get(row, {}):
                return table[row][column]
        return None

    def spread_of(self, row: str, column: str) -> float | None:
        """The spread that the paper prints beside a value, None where it prints none."""
        return self.spread.get(row, {}).get(column)

    def source_of(self, row: str, column: str) -> str:
        """Whether the value of one cell was read in the paper."""
        return "unverified" if column in self.unverified.get(row, {}) else self.source

    def has(self, row: str) -> bool:
        """Whether the paper has a value in this row."""
        return bool(self.values.get(row) or self.unverified.get(row) or self.others.get(row))

    def cells(self) -> list[tuple[str, str, float]]:
        """Row, column and value of every cell, those of `others` last."""
        tables = (self.values, self.unverified, self.others)
        return [(row, column, value) for t in tables for row, of_row in t.items() for column, value in of_row.items()]

    def rows(self) -> list[str]:
        """The rows in which the paper has a value, those of `others` last."""
        return list(dict.fromkeys(row for row, _, _ in self.cells()))

    def columns(self) -> set[str]:
        """The columns in which the paper has a value."""
        return {column for _, column, _ in self.cells()}

    def some_unverified(self) -> bool:
        """Whether a value was not read in the paper."""
        return self.source == "unverified" or bool(self.unverified)


def troubles(p: Published, rows: Collection[str], columns: Collection[str]) -> Iterable[tuple[str, str]]:
    """What is wrong with `p` in a table of these rows and columns, and hints."""
    if p.source not in ("verified", "unverified"):
        yield f"published.source: '{p.source}' is neither verified nor unverified", ""
    if not (p.values or p.unverified or p.others or p.curves):
        yield "published: there is neither a value nor a curve", ""
    for part, table in {"values": p.values, "unverified": p.unverified, "spread": p.spread}.items():
        for row in table:
            if row not in rows:
                yield f"published.{part}: there is no row '{row}'", nearest(row, rows)
    for part, table in {"values": p.values, "unverified": p.unverified, "others": p.others}.items():
        for row, values in table.items():
            for column in values:
                if column not in columns:
                    yield f"published.{part}.{row}: there is no column '{column}'", nearest(column, columns)
                elif part == "unverified" and column in p.values.get(row, {}):
                    yield f"published.unverified.{row}: '{column}' has a verified value", ""
    for row in p.others:
        if row in rows:
            yield f"published.others: '{row}' is a row of the table; its values belong under values", ""
    for row, values in p.spread.items():
        for column in values:
            if column not in p.values.get(row, {}):
                yield f"published.spread.{row}: '{column}' has no value beside it", ""
    for series, points in p.curves.items():
        if not points:
            yield f"published.curves: '{series}' has no points", ""

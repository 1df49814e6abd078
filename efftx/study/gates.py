"""Gates: what a trained model must reach before a claim about it is tested.

A comparison of two models that have learned nothing says nothing. A gate is a trivial answer that every model must
beat, given (`constant`) or computed from the same data (`COMPUTED`), or a level that it must reach (`at least`,
`at most`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np

from efftx.errors import nearest
from efftx.study.significance import MIN_SEEDS, Sample, upper_tail

Cells = Mapping[str, Mapping[str, tuple[str, str]]]
"""Row -> column -> metric and direction."""

CONSTANT, LOWEST, HIGHEST = "constant", "at least", "at most"
COMPUTED = ("ngram", "compressed", "majority", "naive_bayes", "jaccard", "lead", "copy")
KINDS = (CONSTANT, LOWEST, HIGHEST, *COMPUTED)
GATE_SEED = 0
"""The seed in the record of a computed gate, which is deterministic."""


@dataclass(frozen=True)
class Gate:
    """One gate. `kind`: `constant`, `at least`, `at most`, or a trivial answer that is computed (`COMPUTED`).

    value    of `constant`, `at least` and `at most`, in the unit of the cells.
    order    of `ngram`: 1, 2 or 3.
    codec    of `compressed`: xz or png.
    rows     the models that it stands before, all of which train on the same data ([]: all).
    columns  where a model meets it: it passes in one of them or not at all ([]: those with the table's metric).
    guards   the columns that say nothing before it is passed ([]: all).
    only     the sizes at which it stands ([]: all).
    """

    kind: str
    value: float | None = None
    order: int | None = None
    codec: str | None = None
    rows: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    guards: list[str] = field(default_factory=list)
    only: list[str] = field(default_factory=list)

    @property
    def is_computed(self) -> bool:
        """Whether it takes data to know it, so that there is a record of it."""
        return self.kind in COMPUTED

    def stands_before(self, row: str, size: str) -> bool:
        """Whether a model of `row` at `size` has to pass."""
        return (not self.rows or row in self.rows) and (not self.only or size in self.only)

    def meets(self, metrics: Mapping[str, str], usual: str) -> list[str]:
        """The columns in which a model meets the gate, of its `metrics` (column -> metric); `usual` is the table's."""
        return [c for c, metric in metrics.items() if (c in self.columns if self.columns else metric == usual)]

    def guards_any(self, columns: Iterable[str]) -> bool:
        """Whether one of `columns` says nothing before it is passed."""
        return not self.guards or any(column in self.guards for column in columns)

    def asked(self) -> dict[str, str | int]:
        """What is computed, in plain JSON."""
        return {"kind": self.kind} | {k: v for k in ("order", "codec") if (v := getattr(self, k)) is not None}


def troubles(gates: Mapping[str, Gate], trains: bool, cells: Cells, metric: str) -> Iterable[tuple[str, str]]:
    """What is wrong with the gates of an experiment, and the nearest name where a name is wrong.

    `trains`: it names the data that its models train on. `cells` are its cells, row -> column -> metric and direction;
    `metric` is the table's own.
    """
    columns = sorted({column for row in cells.values() for column in row})
    for name, gate in gates.items():
        where = f"gates.{name}"
        if gate.kind not in KINDS:
            yield f"{where}: there is no kind '{gate.kind}'", nearest(gate.kind, KINDS)
        if (gate.value is not None) == gate.is_computed:
            yield f"{where}: a value is given to {CONSTANT}, {LOWEST} and {HIGHEST}, and to nothing else", ""
        if (gate.kind == "ngram") != (gate.order is not None) or gate.order not in (None, 1, 2, 3):
            yield f"{where}: an order, 1, 2 or 3, is given to ngram and to nothing else", ""
        if (gate.codec is not None and gate.kind != "compressed") or gate.codec not in (None, "xz", "png"):
            yield f"{where}: a codec, xz or png, is given to compressed and to nothing else", ""
        if gate.is_computed and not trains:
            yield f"{where}: a gate of a measure is computed from parameters.SIZE.overrides, which it has not", ""
        for part, items, known in (
            ("rows", gate.rows, list(cells)),
            ("columns", gate.columns, columns),
            ("guards", gate.guards, columns),
        ):
            for item in items:
                if item not in known:
                    yield f"{where}.{part}: there is no '{item}'", nearest(item, known)
        for row in gate.rows or cells:
            of_row = cells.get(row, {})
            for column in gate.meets({c: m for c, (m, _) in of_row.items()}, metric):
                direction = of_row[column][1]
                if direction == "none" or direction != {LOWEST: "higher", HIGHEST: "lower"}.get(gate.kind, direction):
                    place = f"'{row}', '{column}'" if column else f"'{row}'"
                    yield f"{where}: of {place} {direction} is better, so that a gate '{gate.kind}' has no sense", ""


def p_of_passing(values: Mapping[int, float], gate: Gate, bar: float, better: str) -> float:
    """The p of a one-sided t test that the seeds' mean is beyond `bar`; a level is also passed where all stand on it.

    0 or 1 by the mean alone where there are fewer seeds than a test needs: such a comparison is not decided anyway.
    """
    is_level = gate.kind in (LOWEST, HIGHEST)
    sign = 1.0 if better == "higher" else -1.0
    above: Sample = sign * (np.array(list(values.values())) - bar)
    if gate.kind == CONSTANT:
        above = above - _rounding(bar)
    if is_level and bool(np.all(above == 0.0)):
        return 0.0
    if above.size < MIN_SEEDS or not np.all(np.isfinite(above)):
        mean = np.mean(above)
        return 0.0 if mean > 0.0 or (is_level and mean == 0.0) else 1.0
    return upper_tail(above)


def _rounding(value: float) -> float:
    """Half of the last digit that `value` is given with: a model that repeats a rounded answer has not beaten it."""
    return 0.5 * 10.0 ** int(Decimal(repr(value)).as_tuple().exponent)

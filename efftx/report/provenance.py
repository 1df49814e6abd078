"""Where an item's numbers come from: one line a record, the machines they ran on, the commands that give them again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from efftx.core.counts import count
from efftx.core.durations import duration
from efftx.core.environment import Environment
from efftx.report import numbers
from efftx.report.items import Item, Measured, data_words
from efftx.study.experiment import Experiment
from efftx.study.measures import replayed_part
from efftx.study.records import Verification

HASH_LENGTH = 12


class Line(NamedTuple):
    """What one record says of itself, in words: `config` and `checksum` shortened, `machine` a letter."""

    row: str
    seed: str
    config: str
    data: str
    checksum: str
    wall: str
    machine: str
    code: str
    replayed: str


@dataclass(frozen=True)
class Provenance:
    """A line a record, the `machines` they name as (letter, description), and the exact `commands`."""

    lines: tuple[Line, ...]
    machines: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]


def machines(items: Iterable[Item]) -> dict[str, str]:
    """A letter for every machine that the records of `items` name, by its description: one throughout a report."""
    names = (Environment.of(r.environment).machine for item in items for m in item.measured for r in m.records)
    return {text: _letter(i) for i, text in enumerate(dict.fromkeys(names))}


def provenance(measured: Measured, experiment: Experiment, letters: Mapping[str, str] | None = None) -> Provenance:
    """What the records at one size say of themselves, their machines by the `letters` of the report."""
    named = {Environment.of(record.environment).machine: None for record in measured.records}
    letters = letters or {text: _letter(i) for i, text in enumerate(named)}
    lines = []
    for record, verification in zip(measured.records, measured.verifications, strict=True):
        environment = Environment.of(record.environment)
        data = data_words(record.data.get("name", ""), record.data.get("variant", ""))
        lines.append(
            Line(
                row=record.row,
                seed=str(record.seed),
                config=record.hash[:HASH_LENGTH],
                data=data or numbers.UNDEFINED,
                checksum=record.data.get("checksum", numbers.UNDEFINED)[:HASH_LENGTH],
                wall=duration(record.wall_seconds),
                machine=letters[environment.machine],
                code=environment.code or numbers.UNDEFINED,
                replayed=_replayed(verification, "" if record.row in experiment.gates else experiment.measure or ""),
            )
        )
    commands = dict.fromkeys(record.command for record in measured.records if record.command)
    return Provenance(tuple(lines), tuple(sorted((letters[text], text) for text in named)), tuple(commands))


def counted(measured: Measured) -> str:
    """What there is, and what is counted: `19 records at size cpu: 6 rows, 3 seeds each, 1 gate`."""
    seeds = Counter(record.row for record in measured.trained)
    counts = [count(len(seeds), "row")] if seeds else []
    if seeds:
        fewest, most = min(seeds.values()), max(seeds.values())
        each = count(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
        counts.append(f"{each} each" if len(seeds) > 1 else each)
    if gates := len(measured.records) - len(measured.trained):
        counts.append(count(gates, "gate"))
    left_out = (
        f"; {len(measured.elsewhere)} made on another device or number of threads, left out"
        if measured.elsewhere
        else ""
    )
    records = count(len(measured.records), "record")
    return f"{records} at size {measured.size}: {', '.join(counts)}{left_out}"


def configurations(measured: Measured, row: str) -> list[str]:
    """The configuration of a row's records, a key a line as on the command line; once for all seeds that share it."""
    of_records = ([f"{key}={value}" for key, value in _flat(r.config)] for r in measured.records if r.row == row)
    without_seed = ([line for line in lines if not line.startswith("seed=")] for lines in of_records)
    return list(dict.fromkeys(map("\n".join, without_seed)))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key, dotted, in order, with its value as in JSON, text without quotes."""
    for key in sorted(config):
        value = config[key]
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


def _replayed(verification: Verification | None, measure: str) -> str:
    if verification is None:
        return "not yet"
    code = Environment.of(verification.environment).code
    by = f", by {code}" if code else ""
    if verification.verdict == "fresh":
        part = replayed_part(measure) if ";" not in verification.why else ""
        return f"comes out {verification.why}{f'; {part}' if part else ''}{by}"
    return f"{verification.verdict}: {verification.why}{by}"


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)

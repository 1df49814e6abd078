"""The house: which room may import which, read from the imports of every module, those inside functions too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import efftx

PACKAGE = Path(efftx.__file__).parent
FLOORS = (
    {"errors", "core", "parent", "ops", "native"},
    {"data", "layers", "optim"},
    {"config", "options", "machine", "study"},
    {"models"},
    {"decoding", "distributed", "plan", "runs"},
    {"training", "evaluation", "sampling", "bench"},
    {"reproduce", "report", "ablate", "launch", "terminal", "api"},
    {"cli", "commands", "__main__"},
)
"""From the ground up. A room imports from its own floor and from those below, and no circle is closed."""


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported_by(path: Path) -> Iterator[str]:
    """The modules of efftx that a file imports anywhere, for its types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name.startswith("efftx."):
                yield name


IMPORTS = {name: set(imported_by(path)) - {name} for name, path in MODULES.items() if name != "efftx"}


def room(module: str) -> str:
    return module.split(".")[1]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A circle of a graph, its first node again at the end; empty where there is none."""
    done: set[str] = set()

    def visit(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := visit(other, [*way, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_every_room_has_its_floor() -> None:
    assert {room(name) for name in IMPORTS} == set().union(*FLOORS)


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_no_room_imports_from_a_floor_above(floor: int) -> None:
    above = set().union(*FLOORS[floor + 1 :])
    upward = [
        f"{name} -> {other}"
        for name, imports in IMPORTS.items()
        for other in imports
        if room(name) in FLOORS[floor] and room(other) in above
    ]
    assert upward == []


def test_rooms_import_each_other_in_no_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for name, imports in IMPORTS.items():
        rooms.setdefault(room(name), set()).update(room(other) for other in imports if room(other) != room(name))
    assert circle(rooms) == []


def test_modules_import_each_other_in_no_circle() -> None:
    assert circle(IMPORTS) == []


def test_the_report_reads_records_and_never_what_writes_them() -> None:
    written = [f"{name} -> {other}" for name in IMPORTS for other in IMPORTS[name] if room(other) == "reproduce"]
    assert [line for line in written if line.startswith("efftx.report.")] == []


def walks() -> dict[str, list[str]]:
    """The ways through the code that the README tells, by their first words, as modules in order."""
    page = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    section = page.split("## How it is built\n")[1].split("\n## ")[0]
    ways = {}
    for way in section.split("\n* **")[1:]:
        for part, steps in enumerate(way.split(" Then ")):
            named = re.findall(r"`(efftx/[\w/]+)\.py`", steps)
            ways[f"{way.split('**')[0]} {part}"] = [name.replace("/", ".") for name in named]
    return ways


@pytest.mark.skipif(not (PACKAGE.parent / "README.md").is_file(), reason="not a checkout: no README beside the package")
def test_the_ways_that_the_readme_tells_go_down_along_imports() -> None:
    ways = walks()
    assert len(ways) == 5
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for name, way in ways.items():
        assert set(way) <= MODULES.keys(), name
        levels = [floor[room(module)] for module in way]
        assert levels == sorted(levels, reverse=True), name
        commands = {module for module in IMPORTS if room(module) == "commands"}  # which the table of commands loads
        for i, module in enumerate(way[1:], 1):
            reached = set().union(*(IMPORTS[before] | PASSED.get(before, set()) for before in way[:i]))
            assert module in reached | commands, f"{name}: nothing before {module} imports it"


PASSED = {
    "efftx.training.step": {"efftx.models.decoder"},
    "efftx.models.streams": {"efftx.models.block"},
    "efftx.models.block": {"efftx.layers.attention"},
}
"""Where a way goes on through an object that was handed in, whose module is not imported."""

"""What is declared, pinned and shipped is what is there: dependencies, constraints, citation, changes."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

import efftx

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN = {"efftx", "tests"}
PEER_FILES = {"efftx/bench/peers.py", "efftx/bench/decode_peers.py", "efftx/bench/engine_peers.py"}
CALLERS = ("Makefile", ".ci/run", "tests/test_cli.py", "tests/test_ablate.py", "tests/training/test_mirror.py")
OPTIONAL = {"soundfile": "efftx/data/sound.py"}
"""What an extra brings, and the one file that imports it, on use."""
PEER_IMPORTS = {
    **{name: name.replace("_", "-") for name in ("transformers", "reformer_pytorch", "ctranslate2", "torchao", "gguf")},
    "llama_cpp": "llama-cpp-python",
}
"""Where they are not installed nobody can tell which distribution an import comes from."""
TOOLS = {
    "pytest-xdist": "-n auto",
    "ruff": "/ruff check",
    "mypy": "/mypy",
    "build": "-m build",
    "types-pyyaml": "/mypy",
    "hydra-joblib-launcher": "hydra/launcher=joblib",
    "hydra-submitit-launcher": "hydra/launcher=submitit_local",
    "tensorboard": "tracker.tensorboard=true",
}
"""What is not imported but called, and the words that call it in the Makefile, the checks or the tests."""


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~\[;]", requirement, maxsplit=1)[0]).lower()


def _declared(*extras: str) -> set[str]:
    lists = [PROJECT["dependencies"], *(EXTRAS[extra] for extra in extras)]
    return {_name(requirement) for one in lists for requirement in one}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            name = node.args[0]
            found |= {str(name.value).split(".")[0]} if isinstance(name, ast.Constant) else set()
    return found - OWN - set(sys.stdlib_module_names)


def _distributions(files: Iterable[Path]) -> dict[str, str]:
    """Distribution -> a file that imports from it."""
    by_module = importlib.metadata.packages_distributions()
    found = {}
    for path in files:
        for module in _imports(path):
            names = [PEER_IMPORTS[module]] if module in PEER_IMPORTS else by_module.get(module)
            assert names is not None, f"{path}: nothing that is installed brings '{module}'"
            found |= {_name(name): str(path.relative_to(ROOT)) for name in names}
    return found


def _files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_every_import_of_the_package_is_declared_and_every_declared_dependency_imported() -> None:
    found = _distributions(_files("efftx"))
    peers = {_name(requirement) for requirement in [*EXTRAS["peers"], *EXTRAS["llama"]]}
    assert {name: found.pop(name) for name in OPTIONAL} == OPTIONAL
    assert {_name(requirement) for requirement in EXTRAS["audio"]} == set(OPTIONAL)
    undeclared = {name: path for name, path in found.items() if name not in _declared() | peers}
    assert not undeclared
    assert _declared() - set(found) == set(), "declared, but imported nowhere"
    assert peers <= set(found)
    assert {found[name] for name in peers} <= PEER_FILES, "peers are imported where they are measured, nowhere else"


def test_every_import_of_the_tests_is_declared_and_every_tool_called() -> None:
    undeclared = set(_distributions(_files("tests"))) - _declared("dev", "peers", "llama")
    assert not undeclared
    called = "".join((ROOT / name).read_text() for name in CALLERS)
    imported = set(_distributions(_files("tests")))
    for name in _declared("dev") - _declared() - imported:
        assert TOOLS.get(name, name) in called, f"{name} is declared for development, and nothing calls it"


def test_the_dependencies_that_users_rely_on_are_there() -> None:
    assert {"torch", "hydra-core", "omegaconf", "datasets", "tokenizers", "wandb", "rich"} <= _declared()
    assert "pytest" in _declared("dev")


def _pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith(("#", "-c "))]
    assert len({_name(line[0]) for line in pinned}) == len(pinned)
    return {_name(line[0]): line[1] for line in pinned}


def test_every_declared_dependency_is_pinned_once_in_the_file_of_its_kind() -> None:
    run, dev, peers = (_pins(name) for name in ("run", "dev", "peers"))
    assert not set(run) & set(dev)
    assert not (set(run) | set(dev)) & set(peers)
    assert _declared() <= set(run)
    assert {_name(r) for r in EXTRAS["dev"]} <= set(dev)
    assert {_name(r) for r in EXTRAS["peers"]} <= set(peers)
    assert {_name(r) for extra in ("joblib", "submitit") for r in EXTRAS[extra]} <= set(dev)
    for name, above in (("dev", "run.txt"), ("peers", "dev.txt")):
        assert f"-c {above}" in (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()


@pytest.mark.parametrize("name", ["run", "dev"])
def test_what_a_pinned_distribution_needs_is_pinned(name: str) -> None:
    """A pin that is missing is a version that nobody tested with."""
    pins = _pins("run") | _pins("dev")
    for pinned in _pins(name):
        for requirement in importlib.metadata.requires(pinned) or []:
            if ";" not in requirement:
                assert _name(requirement) in pins, f"{pinned} needs {requirement}"


def test_the_citation_is_of_this_version_and_names_the_three_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == efftx.__version__
    assert citation["license"] == PROJECT["license"]
    assert {reference["url"] for reference in citation["references"]} == set(PROJECT["urls"].values())
    assert [reference["year"] for reference in citation["references"]] == [2020, 2019, 2021]
    first = [reference["authors"][0]["family-names"] for reference in citation["references"]]
    assert first == ["Kitaev", "Child", "Jaszczur"]


def test_the_changes_of_this_version_are_told_and_the_package_is_typed() -> None:
    assert f"\n## {efftx.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert (ROOT / "efftx" / "py.typed").exists()
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()

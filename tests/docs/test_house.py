"""The project speaks of itself alone, and its checks stay strict."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = {".cff", ".cpp", ".css", ".h", ".json", ".jsonl", ".md", ".py", ".toml", ".tsv", ".txt", ".yaml", ".yml", ""}
FOREIGN = {
    "a folder of one machine": r"(?<![\w.$}/])/(?:home|Users|root|work|mnt|srv|scratch|nfs|opt)/(?!someone\b)\w",
    "a temporary file of one machine": r"(?<![\w.$}/])/tmp/[\w-]+",
    "a drive of one machine": r"\b[C-Z]:\\\\?[A-Za-z]",
    "an address of one machine": r"\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}(?:\.\d{1,3})?\b:\d",
    "a tracker of tasks": r"(?i)\b(?:issue|ticket|pull request|PR) #?\d+\b",
    "a tool that wrote it": r"(?i)\b(?:co-authored-by|generated (?:by|with) (?:an? )?(?:ai|llm))\b",
}
SAMPLE_TEXTS = "efftx/data/samples/"
"""Text of other people, kept as it is."""


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout of git")
    names = [name for name in listed.stdout.decode().split("\0") if name and not name.startswith(SAMPLE_TEXTS)]
    return [ROOT / name for name in names if Path(name).suffix in TEXTS and (ROOT / name).is_file()]


@pytest.mark.parametrize("what", FOREIGN)
def test_no_tracked_text_speaks_of(what: str) -> None:
    pattern = re.compile(FOREIGN[what])
    found = []
    for path in _tracked():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    assert not found


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a folder of one machine", "reads /home/somebody/data"),
        ("a folder of one machine", 'path: "/srv/main"'),
        ("a temporary file of one machine", "see /tmp/notes"),
        ("a drive of one machine", "C:\\\\Users"),
        ("an address of one machine", "http://192.168.0.7:8000"),
        ("a tracker of tasks", "mends ticket 12"),
        ("a tool that wrote it", "Co-authored-by: somebody"),
    ],
)
def test_what_is_forbidden_is_found(what: str, text: str) -> None:
    assert re.search(FOREIGN[what], text)


def test_the_checks_stay_as_strict_as_they_are() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert {"E", "F", "I", "UP", "B", "SIM", "RUF", "PT", "C4", "W", "N", "D1"} <= set(tools["ruff"]["lint"]["select"])
    mypy = tools["mypy"]
    assert mypy["packages"] == ["efftx"]
    for rule in ("check_untyped_defs", "disallow_untyped_defs", "warn_unused_ignores", "warn_redundant_casts"):
        assert mypy[rule] is True
    assert tools["pytest"]["ini_options"]["filterwarnings"][0] == "error"
    assert tools["pytest"]["ini_options"]["xfail_strict"] is True

"""What a page of Markdown tells its reader to write and to type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_RUN = "needs a network"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the heading that it stands under."""

    language: str
    text: str
    heading: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page of the project, in their order."""
    found, heading, language, lines = [], "", None, []
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            if language is None:
                language, lines = line[3:].strip(), []
            else:
                found.append(Block(language, "\n".join(lines) + "\n", heading))
                language = None
        elif language is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert language is None, f"{page}: a block is not closed"
    return found


def commands(block: Block) -> list[str]:
    """The commands of a block of shell, without comments; those whose comment says `NOT_RUN` are left out."""
    assert block.language == "sh"
    lines = [line for line in block.text.splitlines() if line.strip() and NOT_RUN not in line]
    return [command for line in lines if (command := re.split(r"(?:^|\s+)#(?:\s|$)", line, maxsplit=1)[0].strip())]


def write_file(block: Block, root: Path) -> Path:
    """Writes a block of Python or YAML, among whose first comments one is the path, below `root`."""
    named = re.search(r"^# ([\w/-]+\.(?:py|yaml))$", block.text, re.MULTILINE)
    assert named is not None, block.text
    path = root / named.group(1)
    assert not path.exists(), f"{path} is there already"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    return path


def apply_changes(block: Block, root: Path) -> None:
    """Changes files below `root` as a block of `diff` says.

    `+++ path` begins a file and `@@` another place in it; a blank or a minus leads the lines that are there, which must
    be there once, a plus those that shall be.
    """
    path: Path | None = None
    hunks: list[tuple[Path, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("+++ "):
            path = root / line.removeprefix("+++ ").strip()
        assert path is not None
        if line.startswith(("+++ ", "@@")):
            hunks.append((path, []))
        else:
            hunks[-1][1].append(line)
    for path, lines in hunks:
        before = "".join(f"{line[1:]}\n" for line in lines if line[:1] in (" ", "-"))
        after = "".join(f"{line[1:]}\n" for line in lines if line[:1] in (" ", "+"))
        text = path.read_text(encoding="utf-8")
        assert before, f"{path}: a change without a line that is there"
        assert text.count(before) == 1, f"{path}: {text.count(before)} places read\n{before}"
        path.write_text(text.replace(before, after), encoding="utf-8")

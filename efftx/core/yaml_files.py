"""YAML files of users, read as data alone: of bounded size, depth and expansion, every key given once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml

from efftx.core.files import DamagedFileError, read_file
from efftx.errors import UserError

MOST_BYTES = 2**20
MOST_DEPTH = 64
MOST_NODES = 100_000
"""Of a file with every alias written out: a few hundred bytes of aliases of aliases are billions of nodes."""

# libyaml's parser is ten times as fast; PyYAML may have been built without it.
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(_Base):
    """Safe YAML that refuses a key that is not a scalar, and one given twice, of which plain YAML keeps the last.

    A number or a truth value as a key is read as YAML reads it.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be one word", key_node.start_mark)
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_yaml_file(path: Path, kind: str) -> tuple[str, dict[str, Any]]:
    """The text of a YAML file and the mapping that it is; UserError, of `kind` where the file is at fault.

    Refused, with the line where there is one: what is no regular file, more than `MOST_BYTES`, no UTF-8, no YAML,
    deeper than `MOST_DEPTH`, more than `MOST_NODES` with its aliases written out, a key given twice, and no mapping.
    """
    text = _text_of(path, kind)
    try:
        _refuse_too_much(text)
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise UserError(kind, f"{path}{_line_of(error)}: not valid YAML: {_problem_of(error)}") from error
    except (ValueError, TypeError) as error:
        # A number of thousands of digits, an impossible date, an unhashable key.
        raise UserError(kind, f"{path}: a value cannot be read: {error}") from error
    if not isinstance(content, dict):
        what = "it is empty" if content is None else f"this is {type(content).__name__}: {str(content)[:60]!r}"
        raise UserError(kind, f"{path}: a mapping of keys to values is wanted, and {what}.")
    return text, content


def node_of(text: str, key: str) -> yaml.Node | None:
    """The node of a key of the mapping that `text` is, in which scalars stand as they are written; None without it.

    `text` is that of a file that `read_yaml_file` has read.
    """
    root = yaml.compose(text, Loader=_Base)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return next((child for name, child in pairs if name.value == key), None)


def _text_of(path: Path, kind: str) -> str:
    try:
        raw = read_file(path, MOST_BYTES)
    except DamagedFileError as error:
        raise UserError(kind, f"{path}: {error.why}.", "Give a YAML file in its place.") from error
    except (FileNotFoundError, ValueError) as error:  # ValueError: no path has a zero byte
        raise UserError("missing_file", f"{path}: there is no such file.") from error
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(kind, f"{path}, line {line}: this is not UTF-8.", "Save the file as UTF-8.") from error


def _refuse_too_much(text: str) -> None:
    """Raises YAMLError for too deep and for too large a document, before anything is built that follows its depth."""
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = [(None, 0)]  # anchors and nodes so far of the collections around an event
    for event in _events(text):
        size, anchor = 1, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((anchor, 1))
            if len(open_) > MOST_DEPTH:
                raise _at(event, f"more than {MOST_DEPTH} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
            if anchor is not None:
                sizes[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            if anchor in (name for name, _ in open_):
                raise _at(event, f"*{anchor} stands inside what it names")
            size = sizes.get(str(anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            if anchor is not None:
                sizes[anchor] = 1
        else:
            continue
        around, before = open_[-1]
        open_[-1] = (around, before + size)
        if before + size > MOST_NODES:
            raise _at(event, f"more than {MOST_NODES:,} values")


def _at(event: yaml.Event, problem: str) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=cast(Any, event.start_mark))


def _events(text: str) -> Iterator[yaml.Event]:
    yield from yaml.parse(text, Loader=_Base)


def _line_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f", line {mark.line + 1}"


def _problem_of(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None)
    return str(problem) if problem else " ".join(str(error).split())

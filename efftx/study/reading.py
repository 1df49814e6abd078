"""YAML into typed data classes, with errors that name the file, the key, and the nearest key there is."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from efftx.core.yaml_files import node_of, read_yaml_file
from efftx.errors import UserError, nearest
from efftx.study.published import Printed

PUBLISHED = "published"
"""The part of an experiment whose numbers keep the digits that the file gives."""


def read_yaml(path: Path) -> tuple[str, dict[str, Any]]:
    """The comment head of a YAML file, without its hash signs, and its content as a mapping."""
    text, content = read_yaml_file(path, "bad_experiment")
    head: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").removeprefix(" "))
    if isinstance(content.get(PUBLISHED), dict):
        content[PUBLISHED] = _as_printed(content[PUBLISHED], node_of(text, PUBLISHED))
    return "\n".join(head).strip(), content


def _as_printed(value: Any, node: yaml.Node | None) -> Any:
    """`value` with every number in it as it is written in `node`."""
    if isinstance(value, dict):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        nodes = {key.value: child for key, child in pairs}
        return {key: _as_printed(child, nodes.get(str(key))) for key, child in value.items()}
    if isinstance(value, int | float) and not isinstance(value, bool) and isinstance(node, yaml.ScalarNode):
        try:
            return Printed(value, Decimal(node.value))
        except InvalidOperation:  # of YAML's own notations, such as 0x10
            return value
    return value


def build(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a data class, a Mapping, a list, a plain type, or a union of those.

    A data class with a `shorthand` names the field that a bare list fills. Raises UserError beginning with `where`.
    """
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _build_union(kind, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(where, "a list", value)
        return [build(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _wrong(where, "a mapping", value)
        key_kind, value_kind = get_args(kind)
        return {build(key_kind, k, where): build(value_kind, v, f"{where}.{k}") for k, v in value.items()}
    if is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _wrong(where, _WORDS.get(kind, kind.__name__), value)
    return value


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    shorthand = getattr(kind, "shorthand", None)
    if isinstance(value, list) and shorthand is not None:
        value = {shorthand: value}
    if value is None and shorthand is not None:
        value = {}
    if not isinstance(value, dict):
        raise _wrong(where, "a mapping", value)
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.metadata.get("in_file", True)}
    for key in value:
        if key not in known:
            raise UserError("unknown_key", f"{where}: there is no key '{key}'", nearest(str(key), known))
    missing = [n for n, f in known.items() if n not in value and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise UserError("missing_key", f"{where}: the key '{missing[0]}' is missing")
    join = "." if ": " in where else ": "
    return kind(**{k: build(hints[k], v, f"{where}{join}{k}") for k, v in value.items()})


def _build_union(kind: Any, value: Any, where: str) -> Any:
    if value is None and type(None) in get_args(kind):
        return None
    options = [option for option in get_args(kind) if option is not type(None)]
    if len(options) == 1:
        return build(options[0], value, where)
    for option in options:
        try:
            return build(option, value, where)
        except UserError:
            continue
    raise _wrong(where, " or ".join(_WORDS.get(o, "a mapping") for o in options), value)


def _wrong(where: str, wanted: str, value: Any) -> UserError:
    return UserError("bad_value", f"{where}: {wanted} is wanted, this is {_kind(value)}")


def _kind(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}

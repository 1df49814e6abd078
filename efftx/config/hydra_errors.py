"""Errors of Hydra and OmegaConf in words for users."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError

from efftx.core.shipped import shipped
from efftx.errors import UserError, nearest

SHOW_ALL = "`efftx train --cfg job` shows every key with its value."
_LONGEST_LINE = 300


def unresolved(raw: Any, error: InterpolationResolutionError) -> UserError:
    """What is said of `${...}` that leads nowhere; its key and its words where OmegaConf tells them."""
    why = re.sub(r"^\w+ raised while resolving interpolation: | \(key \S+\)", "", first_lines(error))
    key = error.full_key or "a value"
    node = raw
    for part in re.findall(r"[^.\[\]]+", error.full_key or ""):
        node = node._get_node(int(part) if part.isdecimal() else part) if OmegaConf.is_config(node) else None
    text = node._value() if node is not None and isinstance(node._value(), str) else "${...}"
    return UserError(
        "bad_interpolation",
        f"{key}={text} cannot be resolved: {why}",
        "Set the variable or key that it names, or write ${oc.env:NAME,else}, or a plain value.",
    )


def as_user_error(error: Exception, config_dirs: Iterable[str | Path]) -> UserError:
    """What is said of an error of Hydra or OmegaConf: its own words, with the nearest name where one is missing."""
    text = first_lines(error)
    missing = re.search(r"Could not (?:find|load) '?([\w/@]*preset/)?([\w/]+)'?", text)
    if missing and "preset" in text:
        model, _, size = missing.group(2).rpartition("/")
        folders = [Path(d) / "preset" / model.removeprefix("preset/") for d in (shipped("conf"), *config_dirs)]
        known = sorted({p.stem for f in folders if f.is_dir() for p in f.glob("*.yaml")})
        way_on = (
            f"Write preset/{model}/{size}.yaml into the folder of --config-dir, or take another model's, such as "
            f"preset=transformer/{size}."
        )
        hint = nearest(size, known) if known else way_on
        return UserError("unknown_preset", f"The model '{model}' has no size '{size}'.", hint)
    foreign = re.search(r"Could not override '(data\.[\w.]+)'", text)
    if foreign:
        return UserError("unknown_key", f"The chosen data set has no key '{foreign.group(1)}'.", SHOW_ALL)
    text = re.sub(r"^Error merging override (\S+) ", r"\1: ", text)
    kind = "bad_type" if "could not be converted" in text or "is not a " in text or "Invalid" in text else "bad_value"
    return UserError(kind, text, SHOW_ALL)


def first_lines(error: Exception) -> str:
    """An error's own words on one line, without the type names that OmegaConf appends."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and isinstance(cause, Exception):
        causes.append(cause)
    lines = [line.strip() for c in causes for line in str(c).splitlines()]
    kept = [line for line in dict.fromkeys(lines) if line and not line.startswith(("object_type", "reference_type"))]
    short = [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..." for line in kept[:4]]
    return re.sub(r"full_key: (\S+)", r"(key \1)", " ".join(short))

"""What overrides compose to, kept in the user's cache for as long as nothing that composing reads has changed.

Hydra takes about 0.1 s a configuration, and `efftx list` compares every record with the one that it would be made with
today. Only configurations are kept, never results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import efftx
from efftx.config.schema import Config
from efftx.core.artifact import read_document, write_document
from efftx.core.cache import cache_root
from efftx.core.files import sweep
from efftx.core.shipped import shipped
from efftx.data.dataset import find_source
from efftx.errors import UserError

_VERSIONS_KEPT = 16


def composed(overrides: Sequence[str], compose: Callable[[Sequence[str]], Any]) -> Any:
    """What `compose(overrides)` gives: read from the cache, or composed and put there.

    Overrides that ask a resolver (`${oc.env:HOME}`) or read another run are composed each time. A file of the cache
    that is damaged is ignored, and so is a cache that cannot be written.
    """
    if any(re.search(r"\$\{[^}]*:", word) or word.lstrip("+").startswith("pretrained=") for word in overrides):
        return compose(overrides)
    path = _folder() / f"{_digest(json.dumps(list(overrides)).encode())}.json"
    composition = _read(path)
    if composition is None:
        composition = compose(overrides)
        _write(path, composition)
    return composition


def _read(path: Path) -> Any:
    with suppress(UserError, OSError, TypeError, KeyError):
        content = read_document(path)
        return None if content is None else _built(Config, content)
    return None


def _write(path: Path, config: Any) -> None:
    content = dataclasses.asdict(config)
    with suppress(OSError, ValueError):
        new = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_document(path, content)
        if new:
            _remove_old(path.parent.parent)


def _remove_old(root: Path) -> None:
    """Leaves the compositions of the newest versions of the code."""
    folders = sorted((f for f in root.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime, reverse=True)
    for folder in folders[_VERSIONS_KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


def _built(kind: type, values: Mapping[str, Any]) -> Any:
    """The data class of these values, those of its nodes included."""
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        value = values[item.name]
        if isinstance(value, dict):
            node = find_source(value["name"]).config if item.name == "data" else item.type
            assert isinstance(node, type)
            value = _built(node, value)
        arguments[item.name] = value
    return kind(**arguments)


@cache
def _folder() -> Path:
    """One folder for each state of the code, the configuration tree and Hydra."""
    package, conf = Path(efftx.__file__).parent, shipped("conf")
    digest = hashlib.sha256()
    for root, pattern in ((package, "*.py"), (conf, "*.yaml")):
        for path in sorted(root.rglob(pattern)):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(root)} {len(data)}\n".encode() + data)
    digest.update(f"{platform.python_version()} {version('hydra-core')} {version('omegaconf')}".encode())
    folder = cache_root() / "compositions" / digest.hexdigest()[:16]
    sweep(folder)
    return folder


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]

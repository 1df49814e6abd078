"""The sources of Python's standard library as a byte corpus: real text on every machine, without a network."""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from pathlib import Path

from efftx.data.byte_corpus import bytes_rendering, bytes_vocab_size, open_bytes, prepare_corpus, split_90_5_5
from efftx.data.dataset import DataConfig, Dataset, Source, refuse_path
from efftx.data.prepared import Prepared
from efftx.data.span_corruption import SpanCorruptionConfig
from efftx.errors import UserError

LICENCE = "Python Software Foundation License 2.0"
MINIMUM_BYTES = 8_000_000

_OTHER_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# Written by the build or the distribution: they differ between machines with the same Python.
_BUILD_PREFIXES = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")


def variant() -> str:
    """The corpus's name with the version of Python it is from, `stdlib[3.11.7]`."""
    return f"stdlib[{platform.python_version()}]"


def sources(folder: Path) -> list[Path]:
    """The library's .py files in the order of their relative paths, without tests and installed packages."""

    paths = []
    for parent, folders, files in os.walk(folder):
        # In place, so that the walk does not enter them.
        folders[:] = [name for name in folders if name not in _OTHER_FOLDERS and not name.startswith(_BUILD_PREFIXES)]
        paths += [Path(parent, name) for name in files if name.endswith(".py") and not name.startswith(_BUILD_PREFIXES)]
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def prepare_stdlib(config: DataConfig) -> Prepared:
    """The files one after another, split 90/5/5; `UserError` if this Python has less than 8 MB of sources."""
    refuse_path(config)
    # The base installation's library also inside a virtual environment, which has none of its own.
    folder = Path(sysconfig.get_path("stdlib"))
    text = b"".join(path.read_bytes() for path in sources(folder))
    if len(text) < MINIMUM_BYTES:
        raise UserError(
            "missing_file",
            f"This Python has only {len(text):,} bytes of standard library sources in {folder} "
            f"({MINIMUM_BYTES:,} expected).",
            "Use a Python with its .py files, or data=enwik8.",
        )
    facts = {"licence": LICENCE, "origin": "the .py files of Python's standard library, without tests"}
    sha256 = hashlib.sha256(text).hexdigest()
    return prepare_corpus("stdlib", variant(), sha256, split_90_5_5(len(text)), lambda: text, facts)


def open_stdlib(config: SpanCorruptionConfig, objective: str = "lm") -> Dataset:
    """The corpus in rows of `config.length` tokens."""
    return open_bytes(prepare_stdlib(config), config, objective)


SOURCE = Source(
    name="stdlib",
    config=SpanCorruptionConfig,
    licence=LICENCE,
    variant=variant(),
    open=open_stdlib,
    vocab_size=bytes_vocab_size,
    rendering=bytes_rendering,
    objectives=("lm", "span_corruption"),
    prepare=prepare_stdlib,
    reads_files=False,
)

"""Where efftx keeps what it can always make anew."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`efftx` in the user's cache folder; it may not exist.

    The XDG specification: XDG_CACHE_HOME, where that is an absolute path, else `~/.cache`.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "efftx"

"""The folders that a command reads or writes without being told: EFFTX_RUNS, EFFTX_RESULTS, EFFTX_DATA."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from efftx.errors import UserError

RUNS, RESULTS, DATA = "EFFTX_RUNS", "EFFTX_RESULTS", "EFFTX_DATA"
_USUAL = {RUNS: "runs", RESULTS: "results"}


def check_roots(names: Iterable[str]) -> None:
    """UserError for a root that is there and is no folder, or one that cannot be read; a missing one is made later."""
    for name in names:
        path = os.environ.get(name) or _USUAL.get(name)
        if path is None:
            continue
        trouble = _trouble(path)
        if trouble:
            told = f"{name}={path}" if os.environ.get(name) else f"the folder '{path}'"
            raise UserError("bad_root", f"{told} cannot be used: {trouble}.", f"Set {name} to a folder.")


def _trouble(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "it is a link to nothing" if os.path.islink(path) else ""
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if not stat.S_ISDIR(mode):
        return "it is not a folder"
    return "" if os.access(path, os.R_OK | os.X_OK) else "it may not be read"

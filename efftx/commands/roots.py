"""What the environment tells a command: the folders EFFTX_RUNS, EFFTX_RESULTS and EFFTX_DATA, and switches."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from efftx.errors import UserError

RUNS, RESULTS, DATA = "EFFTX_RUNS", "EFFTX_RESULTS", "EFFTX_DATA"
NATIVE = "EFFTX_NATIVE"
_USUAL = {RUNS: "runs", RESULTS: "results"}


def check_roots(names: Iterable[str]) -> None:
    """UserError for a root that is there and is no folder, or one that cannot be read; a missing one is made later."""
    for name in names:
        path = os.environ.get(name) or _USUAL.get(name)
        if path is None:
            continue
        trouble = _trouble(os.path.expanduser(path))
        if trouble:
            root = f"{name}={path}" if os.environ.get(name) else f"the folder '{path}'"
            raise UserError("bad_root", f"{root} cannot be used: {trouble}.", f"Set {name} to a folder.")


def check_switch(name: str) -> None:
    """UserError where a variable that switches something is set to neither 0 nor 1."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise UserError("bad_value", f"{name}={value} is neither 0 nor 1.", f"Set {name}=0 or {name}=1, or unset it.")


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

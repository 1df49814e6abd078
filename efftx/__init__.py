"""efftx: an experiment runner that regenerates the tables and figures of three papers on efficient Transformers.

In Python `efftx.load(run)` gives a run's model and `efftx.records(item)` the numbers of an item's records; layers are
in `efftx.layers`, operations in `efftx.ops`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efftx.api import load as load
    from efftx.api import records as records

__version__ = "0.1.0"
__all__ = ["__version__", "load", "records"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: the command line starts without torch.
    if name in ("load", "records"):
        return getattr(importlib.import_module("efftx.api"), name)
    raise AttributeError(f"module 'efftx' has no attribute '{name}'")

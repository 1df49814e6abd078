"""How many processes were started for one training, as `torchrun` says it in the environment."""

from __future__ import annotations

import os


def n_processes() -> int:
    """WORLD_SIZE; 1 where it is not set."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdecimal() and int(count) > 0 else 1

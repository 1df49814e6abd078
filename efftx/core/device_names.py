"""What `device=` and `dtype=` may say: the one table that composition, training, planning, measuring and sampling use.

PyTorch is not imported here, so that a name is checked at once.
"""

from __future__ import annotations

import re

from efftx.errors import UserError, nearest

DEVICES = ("auto", "cpu", "cuda")
"""`auto` is the GPU where there is one, else the CPU; cuda:0, cuda:1, ... is one GPU of several."""
DTYPES = ("float32", "float64", "bfloat16", "float16")

_GPU = re.compile(r"cuda:(0|[1-9][0-9]{0,2})", re.ASCII)


def read_device(name: str) -> tuple[str, int | None]:
    """What of `DEVICES` a name is, and the number of its GPU where it says one; UserError for any other name."""
    if name in DEVICES:
        return name, None
    if match := _GPU.fullmatch(name):
        return "cuda", int(match[1])
    known = "Known: auto, cpu, cuda, and cuda:0, cuda:1, ... where there are several GPUs."
    close = nearest(name.partition(":")[0], DEVICES, at_most=0)
    raise UserError("bad_value", f"device={name} is not a device.", f"{close} {known}".strip())


def check_dtype(name: str) -> None:
    """UserError, with the nearest known one, for a dtype that efftx does not compute in."""
    if name not in DTYPES:
        raise UserError("bad_value", f"dtype={name} is not a dtype.", nearest(name, DTYPES))

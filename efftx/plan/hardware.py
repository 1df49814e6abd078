"""Devices with a name: how fast they multiply and what they hold, from data sheets, or measured where that is said."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch

from efftx.core.counts import count
from efftx.core.memory import total_memory
from efftx.errors import UserError, nearest
from efftx.machine.devices import DTYPES, threads_of
from efftx.machine.timing import exclusive, matmul_rate

TERA, GIGA = 1e12, 1e9
THIS_CPU = "this-cpu"


@dataclass(frozen=True)
class Hardware:
    """Peak matrix products in FLOP/s by dtype; memory in bytes, None where it is the machine's own affair.

    `utilisation` is the share of the peak that a training step reaches, `gathered_utilisation` that of its products of
    gathered rows; `draw_seconds` is what a number drawn at random takes besides, whatever the number of cores.
    """

    name: str
    flops_per_second: Mapping[str, float]
    memory_bytes: float | None
    source: str
    utilisation: float = 0.4
    gathered_utilisation: float = 0.4
    draw_seconds: float = 0.0

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`, as in `device=`: how its kernels cut their work."""
        return "cpu" if self.name.startswith(("cpu-", THIS_CPU)) else "cuda"


def _gpu(name: str, float64: float, float32: float, bfloat16: float | None, float16: float, memory: float) -> Hardware:
    rates = {"float64": float64, "float32": float32, "bfloat16": bfloat16, "float16": float16}
    return Hardware(
        name,
        {dtype: rate * TERA for dtype, rate in rates.items() if rate is not None},
        memory * GIGA,
        "data sheet, dense, float32 without TF32 (PyTorch's default)",
    )


# Two Zen 3 cores, a 2048-cubed product: 145 GFLOP/s in float32; bfloat16 products fall back to a slow path there.
_PER_CORE = {"float64": 36e9, "float32": 72.5e9, "bfloat16": 0.17e9}
_GPUS = (
    _gpu("v100", 7.8, 15.7, None, 125.0, 16),
    _gpu("a100", 9.7, 19.5, 312.0, 312.0, 80),
    _gpu("h100", 34.0, 67.0, 989.0, 989.0, 80),
    _gpu("h200", 34.0, 67.0, 989.0, 989.0, 141),
)
_TPU = Hardware(
    "tpu-v3-core",
    {"float32": 61.5 * TERA, "bfloat16": 61.5 * TERA},
    16 * GIGA,
    "half a chip's 123 TFLOP/s; its matrix unit multiplies in bfloat16 whatever it is given",
)
DEVICES: dict[str, Hardware] = {device.name: device for device in (*_GPUS, _TPU)}


# The share of hashed attention's products is that of its layers alone; given that, the others are fitted to the times
# of training steps of size cpu, of one and of two threads: PyTorch draws on one thread.
_CPU_UTILISATION, _CPU_GATHERED_UTILISATION, _CPU_DRAW_SECONDS = 0.77, 0.3, 7.0e-9


def cpu(cores: int) -> Hardware:
    """So many cores of the measured kind."""
    rates = {dtype: rate * cores for dtype, rate in _PER_CORE.items()}
    source = "measured on two Zen 3 cores, in proportion to the cores"
    return Hardware(
        f"cpu-{cores}-core", rates, None, source, _CPU_UTILISATION, _CPU_GATHERED_UTILISATION, _CPU_DRAW_SECONDS
    )


# Of a product that is measured, so wide that a tenth of a second is enough for it.
_WIDTHS = {"float64": 1024, "float32": 2048, "bfloat16": 256}


@cache
def this_cpu(threads: int, dtype: str) -> Hardware:
    """This machine, with the rate of a large product in `dtype` on so many threads: measured once a process.

    Where another timing does not end within ten seconds, and for a `dtype` that a CPU has no rate of, the rates of
    `cpu`.
    """
    known = replace(cpu(threads), name=THIS_CPU, memory_bytes=total_memory())
    if dtype not in _WIDTHS:
        return known
    try:
        with exclusive(at_most=10), threads_of(threads):
            measured = matmul_rate(torch.device("cpu"), width=_WIDTHS[dtype], dtype=DTYPES[dtype])
    except UserError as error:
        return replace(known, source=f"{known.source}, since no rate could be measured here: {error.message}")
    source = f"a product measured here and now, on {count(threads, 'thread')}"
    return replace(known, flops_per_second={dtype: measured}, source=source)


def hardware(name: str) -> Hardware:
    """The device called `name`: one of `DEVICES`, or `cpu-<n>-core`; UserError for any other."""
    if name in DEVICES:
        return DEVICES[name]
    match = re.fullmatch(r"cpu-([1-9]\d{0,3})-core", name)
    if match:
        return cpu(int(match.group(1)))
    raise UserError("unknown_device", f"There is no device '{name}'.", nearest(name, [*DEVICES, "cpu-2-core"]))


def rate(device: Hardware, dtype: str) -> float:
    """FLOP/s of `device` in `dtype`; UserError where it has none."""
    if dtype not in device.flops_per_second:
        raise UserError(
            "bad_value",
            f"{device.name} has no known rate for dtype={dtype}.",
            f"Known: {', '.join(device.flops_per_second)}.",
        )
    return device.flops_per_second[dtype]

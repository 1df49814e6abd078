"""What the tests of the kernels' programs share: inputs, and one program run alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from efftx.native.library import kernels
from efftx.native.program import Normed, Program, Stream, run

EPS = 1e-6


def lanes() -> int:
    found = kernels()
    assert found is not None
    return found.lanes


def normed_stream(draw: Callable[..., Tensor], width: int) -> tuple[Normed, Callable[[Tensor], Tensor]]:
    weight, bias = 1 + 0.1 * draw(width), 0.1 * draw(width)
    return Normed(Stream(0), weight, bias, EPS), lambda x: F.layer_norm(x, (width,), weight, bias, EPS)


def run_alone(program: Program, *streams: Tensor, cache: Any = None, n: int = 0) -> None:
    program.bind(tuple(x.data_ptr() for x in streams), [SimpleNamespace(core=cache, beside=cache)], n)
    run([program])

"""What the tests of the kernels' programs share: inputs, and one program run alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
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


def products_of(given: Any, weight_OD: Tensor, draw: Callable[..., Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Products with weights that the kernels are `given` and that stand for `weight`: what comes, what should, inputs.

    One is added to a stream, one is of a normalised stream and rectified, one is plain.
    """
    n_outputs, width = weight_OD.shape
    x, bias, y = draw(1, width), draw(n_outputs), draw(1, n_outputs)
    normed, norm = normed_stream(draw, width)
    added, plain = y + F.linear(x, weight_OD, bias), x @ weight_OD.t()
    rectified = F.linear(norm(x), weight_OD, bias).relu()
    of_norm, of_plain = torch.empty(n_outputs), torch.empty(n_outputs)
    program = Program()
    program.matvec(Stream(0), given, bias, Stream(1), "a", adds=True)
    program.matvec(normed, given, bias, of_norm, "b", relu=True)
    program.matvec(x, given, None, of_plain, "c")
    run_alone(program, x.clone(), y)
    return [(y[0], added[0], x), (of_norm, rectified[0], norm(x)), (of_plain, plain[0], x)]

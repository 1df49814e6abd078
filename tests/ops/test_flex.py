"""Index sets through FlexAttention give what the oracle gives; its gradients run on a GPU alone (`test_gpu`)."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efftx.layers.patterns import ByHead
from efftx.ops.fixed import FixedUnion, OwnBlock, Summaries
from efftx.ops.flex import attend_flex, is_for
from efftx.ops.patterns import attention_naive, index_set
from efftx.ops.strided import Column, StridedUnion, Window
from tests.tolerances import ROUNDING, assert_close

SETS: dict[str, list[Any]] = {
    "window": [Window(5)],
    "window of one": [Window(1)],
    "column": [Column(5)],
    "strided": [StridedUnion(5)],
    "strided, stride 1": [StridedUnion(1)],
    "strided by head": [Window(5), Column(5)],
    "own block": [OwnBlock(6)],
    "summaries": [Summaries(6, 4, 2)],
    "fixed": [FixedUnion(6, 4, 2)],
    "fixed, own sub-blocks": [FixedUnion(6, 4, 2), FixedUnion(6, 2, 2)],
    "fixed by head": [OwnBlock(6), Summaries(6, 5, 1)],
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # the numbers are what is looked at
@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_it_gives_the_index_sets_values(name: str, exclude_self: bool) -> None:
    pattern = ByHead(SETS[name])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 150, 16, generator=generator) for _ in range(3))
    seen = torch.stack([index_set(partial(pattern.sees, head), 150) for head in range(4)])
    sees = partial(pattern.sees_some, exclude_self=exclude_self)
    found = attend_flex(q, k, v, sees, key=(name, exclude_self), scale=0.3, compiled=False)
    assert_close(found, attention_naive(q, k, v, seen_HLL=seen, scale=0.3, exclude_self=exclude_self), ROUNDING)


@pytest.mark.parametrize("name", SETS)
def test_a_set_says_which_queries_see_another_position(name: str) -> None:
    for its in SETS[name]:
        others = index_set(its.sees, 40) & ~torch.eye(40, dtype=torch.bool)
        assert torch.equal(its.sees_others(torch.arange(40)), others.any(1))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("d", "has_kernel"), [(8, False), (16, True), (48, False), (64, True)])
def test_the_compiled_kernel_is_for_a_gpu_its_dtypes_and_powers_of_two(
    d: int, has_kernel: bool, dtype: torch.dtype, device: str
) -> None:
    queries: Any = SimpleNamespace(shape=(2, 3, 5, d), dtype=dtype, device=torch.device(device))
    assert is_for(queries) == (has_kernel and dtype != torch.float64 and device == "cuda")

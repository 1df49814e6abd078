"""`from efftx.layers import ...`: every name is there, costs nothing until it is asked for, and starts with weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

import efftx.layers
from efftx.layers import (
    DenseQKV,
    FeedForward,
    FullConfig,
    LSHAttention,
    LSHConfig,
    SoftmaxAttention,
    SparseFF,
    SparseFFConfig,
    SparseQKV,
    SparseQKVConfig,
    SRUBranch,
    SRUConfig,
    initialized,
    make_pattern,
)

FULL = make_pattern("full", FullConfig(), 64)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: FeedForward(16, 64),
    "sparse": lambda: SparseFF(SparseFFConfig(N=4), 16, 64),
    "hashed": lambda: LSHAttention(LSHConfig(), DenseQKV(16, 2, 8, share_qk=True)),
    "full": lambda: SoftmaxAttention(
        make_pattern("full", FullConfig(), 64), SparseQKV(SparseQKVConfig(S=4), 16, 2), d_head=8
    ),
    "recurrent": lambda: SRUBranch(16, SRUConfig(n_layers=1, d=8)),
}


@pytest.mark.parametrize("name", efftx.layers.__all__)
def test_every_name_is_there(name: str) -> None:
    found = getattr(efftx.layers, name)
    assert callable(found)
    assert found.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Attention'"):
        _ = efftx.layers.Attention


def test_naming_the_layers_imports_no_torch() -> None:
    code = "import sys, efftx.layers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", LAYERS)
def test_first_weights_are_drawn_from_the_seed_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (dict(initialized(LAYERS[name](), seed).named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(first[weight], again[weight]) for weight in first)
    assert any(not torch.equal(first[weight], other[weight]) for weight in first)
    assert all(bool(torch.isfinite(weight).all()) for weight in first.values())
    layer = LAYERS[name]()
    torch.set_rng_state(before)
    initialized(layer)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_starts_with_weights_from_the_random_state_as_those_of_pytorch_do(name: str) -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(dict(LAYERS[name]().named_parameters()))
    first, again, other = drawn
    assert all(torch.equal(first[weight], again[weight]) for weight in first)
    assert any(not torch.equal(first[weight], other[weight]) for weight in first)
    assert all(float(weight.detach().abs().max()) < 10 for weight in first.values())
    assert bool(torch.isfinite(LAYERS[name]()(torch.randn(2, 64, 16))).all())

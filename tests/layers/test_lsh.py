"""The LSH-attention layer is the authors', hashes anew at every call, and keeps its buckets where it is replayed."""

from __future__ import annotations

import pytest
import torch

from efftx.layers.lsh import LSHAttention, LSHConfig
from efftx.layers.projections import DenseQKV
from efftx.models.author_weights import heads_from_linear, heads_to_linear
from efftx.ops.lsh import auto_buckets
from efftx.ops.replay import Replay
from tests.tolerances import GOLDEN, assert_close

LAYERS = {
    "h1": LSHConfig(1, [8], 16, True, True),
    "h2": LSHConfig(2, [8], 16, True, True),
    "h4": LSHConfig(4, [4], 8, True, True),
}
# The file of factored buckets has values wider than queries, which this layer has not; the op is tested on it.
LAYOUTS = {"qk": heads_to_linear, "v": heads_to_linear, "o": heads_from_linear}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_it_gives_the_authors_outputs_and_gradients(golden, name: str, dtype: torch.dtype) -> None:
    arrays, config = golden(f"lsh_attention_{name}", dtype), LAYERS[name]
    heads, d_model, d_head = arrays["w.w_qk"].shape
    layer = LSHAttention(config, DenseQKV(d_model, heads, d_head, share_qk=True, bias=False), attention_dropout=0.0)
    layer.to(dtype)
    with torch.no_grad():
        for part, layout in LAYOUTS.items():
            layer.project.get_submodule(part).weight.copy_(layout(arrays[f"w.w_{part}"]))
    offset = torch.tensor(config.n_buckets).prod() * torch.arange(config.n_hashes)[:, None]
    x = arrays["x"].requires_grad_()
    y = layer(x, Replay({"buckets": arrays["buckets"].long() - offset}))
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    assert_close(x.grad, arrays["grad_x"], GOLDEN, "grad_x")
    for part, layout in LAYOUTS.items():
        grad = layer.project.get_submodule(part).weight.grad
        assert_close(grad, layout(arrays[f"grad_w.w_{part}"]), GOLDEN, part)


def lsh_layer(attention_dropout: float = 0.0, *, n_buckets: list[int] | None = None) -> LSHAttention:
    torch.manual_seed(0)
    config = LSHConfig(n_hashes=2, n_buckets=n_buckets or [], chunk_len=4)
    projections = DenseQKV(12, 2, 8, share_qk=True, bias=False)
    return LSHAttention(config, projections, attention_dropout=attention_dropout).double()


def test_every_call_hashes_anew_and_a_replayed_one_does_not() -> None:
    layer = lsh_layer()
    x = torch.randn(2, 30, 12, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    replay = Replay()
    first = layer(x, replay)
    assert torch.equal(layer(x, replay), first)
    assert replay.choices["buckets"].shape == (2, 2, 2, 30)


def test_every_head_and_every_example_has_rotations_of_its_own() -> None:
    layer = lsh_layer(n_buckets=[8])
    with torch.no_grad():
        layer.project.qk.weight[8:] = layer.project.qk.weight[:8]
    x = torch.randn(1, 40, 12, dtype=torch.float64).expand(2, -1, -1)
    replay = Replay()
    layer(x, replay)
    alike = replay.choices["buckets"].flatten(0, 2)
    assert len({tuple(row.tolist()) for row in alike}) == len(alike)


@pytest.mark.parametrize("length", [3, 4, 30, 64])
def test_buckets_that_are_not_given_follow_the_authors_rule(length: int) -> None:
    layer = lsh_layer()
    replay = Replay()
    layer(torch.randn(1, length, 12, dtype=torch.float64), replay)
    (n_buckets,) = auto_buckets(length, 4)
    assert int(replay.choices["buckets"].min()) >= 0
    assert int(replay.choices["buckets"].max()) < n_buckets


def test_dropout_is_for_training_only() -> None:
    layer = lsh_layer(attention_dropout=0.5)
    x = torch.randn(2, 30, 12, dtype=torch.float64)
    replay = Replay()
    assert not torch.equal(layer(x, replay), layer(x, replay))
    layer.eval()
    assert torch.equal(layer(x, replay), layer(x, replay))

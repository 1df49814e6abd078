"""Sparse QKV gives the authors' queries, keys, values, outputs and gradients, with the weights that they count."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from efftx.errors import UserError
from efftx.layers.attention import SoftmaxAttention
from efftx.layers.attention_settings import FullConfig, LSHConfig
from efftx.layers.initialize import materialize
from efftx.layers.lsh import LSHAttention
from efftx.layers.patterns import Full
from efftx.layers.projections import merge_heads
from efftx.layers.settings import KERNELS, OUTPUTS, VARIANTS, SparseQKVConfig, check_sparse_qkv
from efftx.layers.sparse_qkv import SparseQKV, SparseQuery
from efftx.ops.attention import full_attention
from efftx.ops.module_convolution import module_convolution_naive
from efftx.ops.recompute_state import RecomputeState
from tests.tolerances import GOLDEN, ROUNDING, assert_close

DTYPES = [torch.float64, torch.float32]
AUTHORS = {
    "mult": "multiplicative",
    "conv_q": "q",
    "conv_k": "k",
    "conv_qk": "qk",
    "conv_v": "v",
    "out_mult": "o.multiplicative",
    "out_conv": "o.convolution",
}
"""The authors' name of each part, and this package's."""


def parts(layer: SparseQKV, arrays: dict[str, Tensor], prefix: str) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Every parameter of the layer with the authors' array for it, all of them used."""
    named = dict(layer.named_parameters())
    wanted = [key for key in arrays if key.startswith(prefix)]
    assert len(wanted) == len(named)
    for key in wanted:
        part, tensor = key.removeprefix(prefix).rsplit(".", 1)
        yield named[f"{AUTHORS[part]}.{tensor}"], arrays[key]


def load(layer: SparseQKV, arrays: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for parameter, array in parts(layer, arrays, "w."):
            parameter.copy_(array)


def check_gradients(layer: SparseQKV, arrays: dict[str, Tensor]) -> None:
    for parameter, array in parts(layer, arrays, "grad_w."):
        if array is arrays.get("grad_w.conv_k.bias") and not layer.share_qk:
            # What is added to all keys of a head moves all logits of a query alike: the gradient is 0, up to rounding.
            assert parameter.grad is not None
            largest = GOLDEN[array.dtype] * arrays["grad_w.conv_q.bias"].abs().max()
            assert parameter.grad.abs().max() <= largest
        else:
            assert_close(parameter.grad, array, GOLDEN)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("separate", SparseQKVConfig(S=4)),
        ("out_multconv_vfixed", SparseQKVConfig(S=4, output="multiplicative_convolution", concat_input=True)),
    ],
)
def test_it_gives_the_authors_attention(golden, name: str, config: SparseQKVConfig, dtype: torch.dtype) -> None:
    arrays = golden(f"multconv_attention_{name}", dtype)
    projections = SparseQKV(config, 32, 4, share_qk=False)
    load(projections, arrays)
    layer = SoftmaxAttention(Full(FullConfig()), projections, d_head=8, attention_dropout=0.0).to(dtype)
    x = arrays["x"].requires_grad_()
    for head_name, tensor in zip("qkv", projections(x), strict=True):
        assert_close(tensor.flatten(0, 1), arrays[head_name], GOLDEN, head_name)
    y = layer(x)
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    assert_close(x.grad, arrays["grad_x"], GOLDEN, "grad_x")
    check_gradients(projections, arrays)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shared_convolution_gives_the_authors_queries_and_keys(golden, dtype: torch.dtype) -> None:
    # The authors' attention over them is not shared-QK: keys keep their length, and a token may attend to itself.
    arrays = golden("multconv_attention_shared_qk", dtype)
    layer = SparseQKV(SparseQKVConfig(S=8), 32, 4, share_qk=True).to(dtype)
    load(layer, arrays)
    x = arrays["x"].requires_grad_()
    qk, key, v = layer(x)
    assert key is None
    for name, tensor in {"q": qk, "k": qk, "v": v}.items():
        assert_close(tensor.flatten(0, 1), arrays[name], GOLDEN, name)
    y = layer.output(full_attention(qk, qk, v, scale=1 / math.sqrt(8)))
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    assert_close(x.grad, arrays["grad_x"], GOLDEN, "grad_x")
    check_gradients(layer, arrays)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hash_attention_over_the_mean_of_two_convolutions_is_the_authors(golden, dtype: torch.dtype) -> None:
    arrays = golden("pure_lsh_attention_sparse3", dtype)
    projections = SparseQKV(SparseQKVConfig(S=4, average_qk=True), 32, 4, share_qk=True)
    load(projections, arrays)
    layer = LSHAttention(LSHConfig(2, [8], 16, True, True), projections, attention_dropout=0.0).to(dtype)
    x = arrays["x"].requires_grad_()
    y = layer(x, RecomputeState({"buckets": arrays["buckets"].long() - 8 * torch.arange(2)[:, None]}))
    y.backward(arrays["grad_out"])
    assert_close(y, arrays["y"], GOLDEN, "y")
    assert_close(x.grad, arrays["grad_x"], GOLDEN, "grad_x")
    check_gradients(projections, arrays)


def n_parameters(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def on_meta(config: SparseQKVConfig, *, share_qk: bool = False) -> SparseQKV:
    with torch.device("meta"):
        return SparseQKV(config, 1024, 16, share_qk=share_qk)


def test_the_800m_models_layer_has_169152_weights_and_168128_without_the_shared_bias() -> None:
    layer = on_meta(SparseQKVConfig(S=16, F=3))
    assert n_parameters(layer) == 169_152
    assert layer.multiplicative is not None
    assert layer.multiplicative.bias is not None
    assert n_parameters(layer) - layer.multiplicative.bias.numel() == 168_128


def test_with_the_papers_kernel_it_has_the_192704_weights_of_section_3_2() -> None:
    layer = on_meta(SparseQKVConfig(S=16, F=3, kernel="paper"))
    assert layer.multiplicative is not None
    assert layer.multiplicative.bias is not None
    assert n_parameters(layer) - layer.multiplicative.bias.numel() == 192_704
    kernels = [layer.get_parameter(f"{name}.kernel") for name in "qkv"]
    assert {tuple(kernel.shape) for kernel in kernels} == {(3, 3, 64, 64)}


@pytest.mark.parametrize("kernel", KERNELS)
def test_queries_keys_and_values_and_their_gradients_are_those_of_the_loops(kernel: str) -> None:
    layer = SparseQKV(SparseQKVConfig(S=4, F=3, kernel=kernel), 24, 3, share_qk=False).double()
    materialize(layer, torch.device("cpu"), 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 24, dtype=torch.float64, generator=generator, requires_grad=True)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)

    def by_loops() -> list[Tensor]:
        h_BLSm = layer.multiplicative(x).unflatten(-1, (4, 6))  # type: ignore[misc]
        maps = [layer.get_submodule(name) for name in "qkv"]
        return [module_convolution_naive(h_BLSm, m.kernel, m.bias).flatten(2) for m in maps]  # type: ignore[arg-type]

    found = []
    for heads in ([merge_heads(head) for head in layer(x)], by_loops()):
        cotangents = torch.randn(3, 2, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        leaves = [x, *layer.parameters()]
        found.append([*heads, *torch.autograd.grad(heads, leaves, list(cotangents))])
    for actual, expected in zip(*found, strict=True):
        assert_close(actual, expected, ROUNDING)


# At d_model 1024, S 16 and F 3: M = 64; the multiplicative layer has 1024 (16 + 64) + 1024 weights.
_MULTIPLICATIVE = 1024 * (16 + 64) + 1024
_CONVOLUTION = 3 * 3 * 64 * 64 + 64
_VALUE_CONVOLUTION = 3 * 1 * 64 * 64 + 64


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kernel": "paper"}, _MULTIPLICATIVE + 3 * _CONVOLUTION),
        ({"kernel": "paper", "F": 1}, _MULTIPLICATIVE + 3 * (64 * 64 + 64)),
        ({"F": 1}, _MULTIPLICATIVE + 2 * (3 * 64 * 64 + 64) + 64 * 64 + 64),
        ({"concat_input": True}, _MULTIPLICATIVE + 2 * _CONVOLUTION + 3 * 1 * 128 * 64 + 64),
        ({"variant": "multiplicative"}, 3 * _MULTIPLICATIVE),
        ({"variant": "convolution"}, 2 * _CONVOLUTION + _VALUE_CONVOLUTION),
        ({"variant": "modular"}, 3 * (16 * 64 * 64 + 1024)),
        ({"variant": "low_rank"}, 3 * (1024 * 64 + 64 + 64 * 1024 + 1024)),
        ({"variant": "low_rank", "rank": 8}, 3 * (1024 * 8 + 8 + 8 * 1024 + 1024)),
        ({"output": "multiplicative"}, 169_152 + _MULTIPLICATIVE),
        ({"output": "convolution"}, 169_152 + _CONVOLUTION),
        ({"output": "multiplicative_convolution"}, 169_152 + _MULTIPLICATIVE + _CONVOLUTION),
        ({"output": "dense"}, 169_152 + 1024 * 1024 + 1024),
    ],
)
def test_every_ablation_has_the_weights_that_its_shapes_give(options: dict[str, object], expected: int) -> None:
    assert n_parameters(on_meta(SparseQKVConfig(S=16, **options))) == expected


def test_sharing_queries_and_keys_saves_a_convolution_unless_it_is_the_mean_of_two() -> None:
    assert n_parameters(on_meta(SparseQKVConfig(S=16), share_qk=True)) == 169_152 - _CONVOLUTION
    assert n_parameters(on_meta(SparseQKVConfig(S=16, average_qk=True), share_qk=True)) == 169_152
    assert n_parameters(on_meta(SparseQKVConfig(S=16, average_qk=True), share_qk=False)) == 169_152


def started(config: SparseQKVConfig, *, share_qk: bool, d_model: int = 24, n_heads: int = 3) -> SparseQKV:
    with torch.device("meta"):
        layer = SparseQKV(config, d_model, n_heads, share_qk=share_qk)
    materialize(layer, torch.device("cpu"), seed=0)
    return layer.double()


@pytest.mark.parametrize("share_qk", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_and_output_has_the_interface_of_dense_projections(variant: str, share_qk: bool) -> None:
    for output, kernel, length in itertools.product(OUTPUTS, KERNELS, (1, 2, 9)):
        config = SparseQKVConfig(S=4, variant=variant, output=output, kernel=kernel)
        layer = started(config, share_qk=share_qk)
        x = torch.randn(2, length, 24, dtype=torch.float64)
        q, k, v = layer(x)
        assert (layer.n_heads, layer.share_qk, k is None) == (3, share_qk, share_qk)
        y = layer.output(v)
        assert y.shape == x.shape
        (y.sum() + q.sum() + (0 if k is None else k.sum())).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
        for tensor in (q, v) if k is None else (q, k, v):
            assert tensor.shape == (2, 3, length, 8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_variant_looks_ahead_and_only_a_convolution_looks_back(variant: str) -> None:
    layer = started(SparseQKVConfig(S=4, F=3, variant=variant), share_qk=False)
    x = torch.randn(1, 9, 24, dtype=torch.float64)
    other = x.clone()
    other[:, 4] += 1.0
    reach = 3 if "convolution" in variant else 1
    for before, after in zip(layer(x), layer(other), strict=True):
        changed = (before != after).any(-1).any(1)[0]
        assert changed.tolist() == [4 <= t < 4 + reach for t in range(9)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_runs_on_the_meta_device(variant: str) -> None:
    layer = on_meta(SparseQKVConfig(S=16, variant=variant, output="multiplicative_convolution"))
    x = torch.empty(2, 7, 1024, device="meta", requires_grad=True)
    q, k, v = layer(x)
    assert k is not None
    (q * k + v).sum().backward()
    assert q.shape == (2, 16, 7, 64)
    assert layer.output(v).shape == x.shape


def test_a_modular_layer_is_a_block_diagonal_matrix() -> None:
    layer = started(SparseQKVConfig(S=4, variant="modular"), share_qk=True)
    matrix = torch.block_diag(*layer.v.weight)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    assert_close(layer.v(x), x @ matrix + layer.v.bias, ROUNDING)
    bound = math.sqrt(6 / 12)
    assert all(0.8 * bound < float(block.abs().max()) <= bound for block in layer.v.weight.detach())


def test_a_low_rank_layer_has_the_rank_it_is_given() -> None:
    layer = started(SparseQKVConfig(S=4, variant="low_rank", rank=5), share_qk=True)
    matrix = layer.v.up.weight @ layer.v.down.weight
    assert int(torch.linalg.matrix_rank(matrix)) == 5
    x = torch.randn(2, 3, 24, dtype=torch.float64)
    assert_close(layer.v(x), x @ matrix.T + layer.v.up.bias + layer.v.down.bias @ layer.v.up.weight.T, ROUNDING)


def test_the_ablations_are_the_whole_layer_with_a_part_that_does_nothing() -> None:
    whole = started(SparseQKVConfig(S=4), share_qk=False)
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    convolution = started(SparseQKVConfig(S=4, variant="convolution"), share_qk=False)
    assert whole.multiplicative is not None
    convolution.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("multiplicative")})
    for one, other in zip(whole(x), convolution(whole.multiplicative(x)), strict=True):
        assert torch.equal(one, other)
    multiplicative = started(SparseQKVConfig(S=4, variant="multiplicative"), share_qk=False)
    for name in "qkv":
        multiplicative.get_submodule(name).load_state_dict(whole.multiplicative.state_dict())
        kernel = whole.get_submodule(name).kernel
        with torch.no_grad():
            kernel.zero_()[-1, kernel.shape[1] // 2] = torch.eye(6)
            whole.get_submodule(name).bias.zero_()
    for one, other in zip(whole(x), multiplicative(x), strict=True):
        assert_close(one, other, ROUNDING)


def test_a_sparse_query_is_that_of_self_attention() -> None:
    config = SparseQKVConfig(S=4)
    own = started(config, share_qk=False)
    query = SparseQuery(config, 24, 3).double()
    assert own.multiplicative is not None
    query.multiplicative.load_state_dict(own.multiplicative.state_dict())
    query.convolution.load_state_dict(own.q.state_dict())
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    q, _, v = own(x)
    assert torch.equal(query(x), q)
    assert torch.equal(query.output(v), own.output(v))


@pytest.mark.parametrize(
    ("options", "d_model", "n_heads", "says"),
    [
        ({"S": 5}, 24, 3, "d_model=24 is not divisible by sparse_qkv.S=5"),
        ({"S": 0}, 24, 3, "sparse_qkv.S=0 must be at least 1"),
        ({}, 24, 5, "d_model=24 is not divisible by n_heads=5"),
        ({"F": 0}, 24, 3, "sparse_qkv.F=0 must be at least 1"),
        ({"F": 2, "kernel": "paper"}, 24, 3, "even number of modules"),
        ({"rank": -1, "variant": "low_rank"}, 24, 3, "sparse_qkv.rank=-1 must be at least 0"),
        ({"rank": 4}, 24, 3, "sparse_qkv.rank=4 is of sparse_qkv.variant=low_rank"),
        ({"concat_input": True, "variant": "modular"}, 24, 3, "sparse_qkv.concat_input=true is of"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, object], d_model: int, n_heads: int, says: str) -> None:
    config = SparseQKVConfig(**{"S": 4, **options})
    for build in (
        lambda: check_sparse_qkv(config, d_model, n_heads),
        lambda: SparseQKV(config, d_model, n_heads, share_qk=False),
        lambda: SparseQuery(config, d_model, n_heads),
    ):
        with pytest.raises(UserError, match=says):
            build()


@pytest.mark.parametrize(
    ("key", "word", "meant"),
    [
        ("kernel", "papers", "paper"),
        ("variant", "multiplicativ", "multiplicative"),
        ("output", "convolutions", "convolution"),
        ("cross", "querry", "query"),
    ],
)
def test_an_unknown_word_is_refused_with_the_nearest(key: str, word: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"sparse_qkv.{key}={word} is not known") as caught:
        check_sparse_qkv(SparseQKVConfig(**{"S": 4, key: word}), 24, 3)
    assert caught.value.hint == f"Did you mean '{meant}'?"

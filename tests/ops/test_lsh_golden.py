"""Hash attention gives the authors' outputs and gradients, from the authors' buckets and from their rotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from efftx.ops.lsh import lsh_attention
from efftx.ops.lsh_hashing import hash_vectors, sort_by_bucket
from efftx.ops.lsh_oracle import lsh_attention_by_rank

GOLDEN = Path(__file__).parents[1] / "golden"
# The files were computed in float64 and stored in float32.
TOLERANCE = {torch.float64: 2e-6, torch.float32: 2e-5}

LAYERS = {
    "h1": {"factors": [8], "chunk_len": 16, "causal": True},
    "h2": {"factors": [8], "chunk_len": 16, "causal": True},
    "h2_factored_buckets": {"factors": [4, 6], "chunk_len": 16, "causal": True},
    "h2_masked_encoder": {"factors": [8], "chunk_len": 16, "causal": False},
    "h4": {"factors": [4], "chunk_len": 8, "causal": True},
}
FIRST_VERSION = {
    "h1_in_bucket": {"n_buckets_total": 8, "chunk_len": 16},
    "h2_in_bucket_dedup": {"n_buckets_total": 8, "chunk_len": 16},
}


def load(name: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def without_round_offset(bucket_BHRL: Tensor, n_buckets: int) -> Tensor:
    offset_R1 = n_buckets * torch.arange(bucket_BHRL.shape[2])[:, None]
    return bucket_BHRL.long() - offset_R1


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_the_later_form_gives_the_authors_outputs_and_gradients(name: str, dtype: torch.dtype) -> None:
    golden, layer = load(f"lsh_attention_{name}", dtype), LAYERS[name]
    n_buckets = int(np.prod(layer["factors"]))
    leaves = {key: golden[key].requires_grad_() for key in ("x", "w.w_qk", "w.w_v", "w.w_o")}
    q_BHLd = torch.einsum("blD,hDd->bhld", leaves["x"], leaves["w.w_qk"])
    v_BHLv = torch.einsum("blD,hDd->bhld", leaves["x"], leaves["w.w_v"])
    out_BHLv = lsh_attention(
        q_BHLd,
        v_BHLv,
        without_round_offset(golden["buckets"], n_buckets + ("mask" in golden)),
        n_buckets_total=n_buckets,
        chunk_len=layer["chunk_len"],
        causal=layer["causal"],
        attend_across_buckets=True,
        allow_duplicates=True,
        key_mask_BL=golden.get("mask"),
    )
    y_BLD = torch.einsum("bhlv,hvD->blD", out_BHLv, leaves["w.w_o"])
    y_BLD.backward(golden["grad_out"])
    close(y_BLD.detach(), golden["y"])
    for key, leaf in leaves.items():
        assert leaf.grad is not None
        scale = golden[f"grad_{key}"].abs().max()
        close(leaf.grad / scale, golden[f"grad_{key}"] / scale)


@pytest.mark.parametrize("name", LAYERS)
def test_rotations_give_the_authors_buckets_and_order(name: str) -> None:
    golden, layer = load(f"lsh_attention_{name}"), LAYERS[name]
    n_buckets = int(np.prod(layer["factors"]))
    q_BHLd = torch.einsum("blD,hDd->bhld", golden["x"], golden["w.w_qk"])
    bucket_BHRL = hash_vectors(q_BHLd, golden["rotations"], layer["factors"])
    if "mask" in golden:
        bucket_BHRL = torch.where(golden["mask"][:, None, None], bucket_BHRL, n_buckets)
    expected_BHRL = without_round_offset(golden["buckets"], n_buckets + ("mask" in golden))
    assert torch.equal(bucket_BHRL, expected_BHRL)

    n_rounds, length = bucket_BHRL.shape[2:]
    order_NRL = sort_by_bucket(bucket_BHRL.flatten(0, 1), n_buckets + 1)
    entry_NRL = order_NRL + length * torch.arange(n_rounds)[:, None]
    assert torch.equal(entry_NRL.flatten(1), golden["sort_order"].flatten(0, 1).long())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FIRST_VERSION)
def test_the_papers_form_gives_the_first_versions_outputs_and_gradients(name: str, dtype: torch.dtype) -> None:
    golden = load(f"lsh_attention_v1_{name}", dtype)
    check_first_version(golden, lsh_attention, FIRST_VERSION[name])


def test_an_unclamped_count_gives_the_first_version_across_buckets() -> None:
    golden = load("lsh_attention_v1_h4_across_dedup")
    options = {"n_buckets_total": 8, "chunk_len": 8, "attend_across_buckets": True, "unclamped_count": True}
    check_first_version(golden, lsh_attention_by_rank, options)


def test_the_operation_gives_the_first_versions_outputs_where_no_chunk_looks_back_into_another_round() -> None:
    """A pair that meets across the border of two rounds alone was found 0 times: their code then adds 21 to its score,
    and the operation counts it once.
    """
    golden, chunk_len = load("lsh_attention_v1_h4_across_dedup"), 8
    bucket_1HRL = without_round_offset(golden["buckets"][None], 8)
    out_1HLv = lsh_attention(
        *(golden[name][None] for name in ("qk", "v")), bucket_1HRL, n_buckets_total=8, chunk_len=chunk_len,
        attend_across_buckets=True,
    )  # fmt: skip
    rank_HRL = sort_by_bucket(bucket_1HRL[0], 8).argsort(-1)
    inside_HL = (rank_HRL >= chunk_len).all(1)
    assert int(inside_HL.sum()) > 64
    close(out_1HLv[0][inside_HL], golden["y"][inside_HL])
    assert float((out_1HLv[0] - golden["y"])[~inside_HL].abs().max()) > 1


def check_first_version(golden: dict[str, Tensor], attention, options: dict[str, int]) -> None:  # type: ignore[no-untyped-def]
    q_NLd, v_NLv = golden["qk"].requires_grad_(), golden["v"].requires_grad_()
    bucket_1HRL = without_round_offset(golden["buckets"][None], options["n_buckets_total"])
    out_1HLv = attention(q_NLd[None], v_NLv[None], bucket_1HRL, **options)
    out_1HLv.backward(golden["grad_out"][None])
    close(out_1HLv.detach()[0], golden["y"])
    assert q_NLd.grad is not None
    assert v_NLv.grad is not None
    scale = golden["grad_qk"].abs().max()
    close(q_NLd.grad / scale, golden["grad_qk"] / scale)
    close(v_NLv.grad, golden["grad_v"])

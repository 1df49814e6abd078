"""Heads are contiguous slices of the projections, as in the authors' code."""

from __future__ import annotations

import pytest
import torch

from efftx.layers.projections import DenseQKV, DenseQuery


@pytest.mark.parametrize("share_qk", [False, True])
def test_head_h_owns_the_hth_slice_of_every_projection(share_qk: bool) -> None:
    torch.manual_seed(0)
    own = DenseQKV(6, 3, 4, share_qk=share_qk, bias=True).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    q, k, v = own(x)
    assert (k is None) == share_qk
    named = {"qk" if share_qk else "q": q, "v": v} | ({} if k is None else {"k": k})
    for name, tensor in named.items():
        assert tensor.shape == (2, 3, 5, 4)
        whole = getattr(own, name)(x)
        for head in range(3):
            assert torch.equal(tensor[:, head], whole[..., 4 * head : 4 * head + 4])
    assert torch.equal(own.output(v), own.o(torch.cat([v[:, head] for head in range(3)], dim=-1)))


@pytest.mark.parametrize(("share_qk", "n_projections"), [(False, 4), (True, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_shared_queries_and_keys_save_one_projection(share_qk: bool, n_projections: int, bias: bool) -> None:
    own = DenseQKV(6, 3, 4, share_qk=share_qk, bias=bias)
    expected = n_projections * 6 * 12 + ((n_projections - 1) * 12 + 6 if bias else 0)
    assert sum(p.numel() for p in own.parameters()) == expected


@pytest.mark.parametrize("bias", [False, True])
def test_a_query_of_its_own_is_the_queries_part_of_separate_projections(bias: bool) -> None:
    torch.manual_seed(0)
    whole = DenseQKV(6, 3, 4, share_qk=False, bias=bias).double()
    query = DenseQuery(6, 3, 4, bias=bias).double()
    query.load_state_dict({k: v for k, v in whole.state_dict().items() if k.split(".")[0] in ("q", "o")})
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    q, _, v = whole(x)
    assert torch.equal(query(x), q)
    assert torch.equal(query.output(v), whole.output(v))

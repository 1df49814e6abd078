"""The decoder's rows follow the last real encoder row, and come out again as they went in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from efftx.ops.concatenation import cut_after, join_after, join_after_naive
from tests.tolerances import ROUNDING, assert_close


def rows(batch: int, length: int, width: int = 3) -> torch.Tensor:
    return torch.randn(batch, length, width, dtype=torch.float64, requires_grad=True)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.data())
def test_joining_is_that_of_the_oracle_row_by_row(batch: int, n_encoded: int, n_decoded: int, data) -> None:
    n = torch.tensor(data.draw(st.lists(st.integers(0, n_encoded), min_size=batch, max_size=batch)))
    encoded, decoded = rows(batch, n_encoded), rows(batch, n_decoded)
    joined = join_after(encoded, decoded, n)
    assert torch.equal(joined, join_after_naive(encoded, decoded, n))
    assert torch.equal(cut_after(joined, n, n_decoded), decoded)
    weight = torch.randn_like(joined)
    found = torch.autograd.grad((joined * weight).sum(), (encoded, decoded))
    expected = torch.autograd.grad((join_after_naive(encoded, decoded, n) * weight).sum(), (encoded, decoded))
    for g, e in zip(found, expected, strict=True):
        assert_close(g, e, ROUNDING)


def test_a_decoders_first_row_stands_right_after_the_last_real_encoder_row() -> None:
    encoded = torch.tensor([[[1.0], [2.0], [9.0]]])
    decoded = torch.tensor([[[5.0], [6.0]]])
    assert join_after(encoded, decoded, torch.tensor([2])).flatten().tolist() == [1, 2, 5, 6, 0]
    assert join_after(encoded, decoded, torch.tensor([0])).flatten().tolist() == [5, 6, 9, 0, 0]


def test_strided_input_and_the_meta_device_are_taken() -> None:
    encoded, decoded = rows(2, 4).transpose(0, 1), rows(2, 4).transpose(0, 1)
    n = torch.tensor([1, 0, 4, 2])[:4]
    encoded, decoded = encoded[:, :2], decoded[:, :1]
    n = n.clamp(max=2)
    assert torch.equal(join_after(encoded, decoded, n), join_after_naive(encoded, decoded, n))
    with torch.device("meta"):
        joined = join_after(torch.empty(2, 3, 4), torch.empty(2, 5, 4), torch.empty(2, dtype=torch.int64))
    assert joined.shape == (2, 8, 4)


@pytest.mark.parametrize(("batch", "width", "lengths"), [(3, 3, 2), (2, 4, 2), (2, 3, 3)])
def test_rows_that_do_not_belong_together_are_refused(batch: int, width: int, lengths: int) -> None:
    with pytest.raises(ValueError, match="same batch"):
        join_after(rows(2, 4), rows(batch, 2, width), torch.zeros(lengths, dtype=torch.int64))

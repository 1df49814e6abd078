"""Live bytes, on cases that can be counted by hand."""

from __future__ import annotations

import torch
from torch import nn

from efftx.bench.memory_tracker import MemoryTracker

FLOAT = 4


def test_a_matrix_product_and_what_follows_hold_what_can_be_counted_by_hand() -> None:
    x, w = torch.randn(8, 16), torch.randn(16, 4)
    with MemoryTracker() as live:
        y = x @ w
        assert live.bytes_now() == 8 * 4 * FLOAT
        z = y.relu()
        del y
        assert live.bytes_now() == 8 * 4 * FLOAT
        del z
    assert live.bytes_now() == 0
    assert live.peak_bytes() == 2 * 8 * 4 * FLOAT


def test_views_count_once_and_keep_their_storage_alive() -> None:
    with MemoryTracker() as live:
        x = torch.zeros(10, 10)
        view = x.t()[2:]
        del x
        assert live.bytes_now() == 100 * FLOAT
        del view
    assert live.bytes_now() == 0
    assert live.peak_bytes() == 100 * FLOAT


def test_what_exists_before_does_not_count_nor_do_its_views_and_changes_in_place() -> None:
    x = torch.zeros(100)
    with MemoryTracker() as live:
        view = x.view(10, 10)
        view.add_(1)
    assert live.peak_bytes() == 0


def test_a_tensor_that_an_operator_resizes_counts_with_its_new_size() -> None:
    x = torch.ones(20, 20)
    with MemoryTracker() as live:
        out = torch.empty(0)
        torch.mm(x, x, out=out)
        assert live.bytes_now() == 400 * FLOAT
    assert live.peak_bytes() == 400 * FLOAT


def test_storages_that_are_emptied_and_filled_between_operators_count_as_they_are_then() -> None:
    with MemoryTracker(resizes=True) as live:
        x, y = torch.zeros(100), torch.zeros(10)
        x.untyped_storage().resize_(0)
        y.add_(1)
        assert live.bytes_now() == 10 * FLOAT
        x.untyped_storage().resize_(200 * FLOAT)
        y.add_(1)
        assert live.bytes_now() == 210 * FLOAT
        del x
        assert live.bytes_now() == 10 * FLOAT
    assert live.peak_bytes() == 210 * FLOAT


def test_the_backward_pass_counts_and_gradients_can_be_left_out() -> None:
    x = torch.randn(8, 16)
    layer = nn.Linear(16, 4, bias=False)
    with MemoryTracker() as live:
        y = layer(x)  # 8 x 4, kept by nobody but its name
        loss = y.sum()  # 1
        del y
        loss.backward()  # the gradient of y is an expanded 1; of the weights 4 x 16
    assert layer.weight.grad is not None
    without = live.peak_bytes(excluding=[layer.weight.grad])
    assert without == (8 * 4 + 1) * FLOAT
    assert live.peak_bytes() >= without + 4 * 16 * FLOAT - 8 * 4 * FLOAT
    assert live.bytes_now() == (4 * 16 + 1) * FLOAT


def test_an_address_used_again_is_another_storage() -> None:
    with MemoryTracker() as live:
        for _ in range(5):
            x = torch.zeros(1000)
            del x
    assert live.bytes_now() == 0
    assert live.peak_bytes() == 1000 * FLOAT

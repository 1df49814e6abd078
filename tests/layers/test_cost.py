"""What layers state of their cost; that the statements are right, `tests/test_plan.py` holds to counted operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from efftx.config.compose import compose
from efftx.layers.cost import Cost, Read, Rows, cost_of, reads_of, sum_by_component
from efftx.layers.feedforward import FeedForward
from efftx.layers.settings import SparseFFConfig
from efftx.layers.sparse_ff import SparseFF
from efftx.layers.sru import SRUBranch, SRUConfig
from efftx.models.block import TOKENS, Branch
from efftx.models.build import build_on_meta

ROWS = Rows(batch=2, length=32)
SMOKE = ["model=scaling", "data=stdlib", "size=smoke", "sru.n_layers=1"]


def test_a_layer_that_states_nothing_costs_nothing_and_is_read_as_a_whole() -> None:
    layer = nn.Linear(8, 4)
    assert cost_of(layer, ROWS) == Cost()
    assert reads_of(layer) == [Read("everything else", 36, 144)]


@pytest.mark.parametrize("kind", ["full", "local", "strided", "fixed", "lsh"])
def test_every_branch_of_every_model_states_what_it_does(kind: str) -> None:
    model = build_on_meta(compose([*SMOKE, f"attention=[{kind}]"]), 32)
    for block in (*model.blocks, *model.encoder_blocks):  # type: ignore[union-attr, misc]
        for branch in block.branches():
            cost = branch.cost(ROWS)
            assert cost.work
            assert min(cost.saved, cost.backward, cost.choices) > 0
        assert {read.component for read in block.weight_reads()} >= {"QKV", "feed-forward", "SRU"}


def test_a_recomputed_block_needs_its_last_product_again_only_where_something_reads_the_output() -> None:
    def last(*, dropout: float = 0.0, beside: nn.Module | None = None, chunk_len: int = 0) -> float:
        core = FeedForward(8, 32, activation="relu", dropout=0.0, chunk_len=chunk_len)
        return Branch(8, core, dropout, reads=TOKENS, beside=beside).cost(ROWS).work["feedforward"].last

    assert last() == 0.5
    assert last(dropout=0.1) == last(beside=SRUBranch(8, SRUConfig(1, 4))) == last(chunk_len=16) == 0


def test_a_frozen_controller_is_run_forward_alone_and_a_trained_one_three_times() -> None:
    def passes(**own: object) -> tuple[float, float]:
        layer = SparseFF(SparseFFConfig(N=4, **own), 8, 32)  # type: ignore[arg-type]
        work = layer.cost(ROWS).work["feedforward_controller"]
        return work.backward, work.reversed

    assert passes() == (2.0, 1.0)
    assert passes(controller="frozen") == (0.0, 0.0)
    assert passes(controller="frozen", multiply_by_controller=True) == (0.0, 1.0)


def test_costs_of_bytes_grow_with_the_rows_and_with_the_size_of_a_number() -> None:
    with torch.device("meta"):
        layer = FeedForward(8, 32, activation="gelu", dropout=0.1)
    once, doubled, wide = (layer.cost(rows) for rows in (ROWS, Rows(4, 32), Rows(batch=2, length=32, element_bytes=8)))
    assert doubled.saved == wide.saved == 2 * once.saved > 0
    assert doubled.work == wide.work == once.work  # of one row


def test_reads_of_a_component_are_added_up_and_those_of_nothing_left_out() -> None:
    reads = [Read("a", 1, 4), Read("b", 0, 0), Read("a", 2, 2)]
    assert sum_by_component(reads) == {"a": Read("a", 3, 6)}

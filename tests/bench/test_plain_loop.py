"""The plain loop that training steps are measured against is the model that they train."""

from __future__ import annotations

import torch
from torch import nn

from efftx import bench
from efftx.bench.plain_loop import PlainTransformer, plain_step
from efftx.bench.stacks import PLAIN, VOCAB_SIZE, step_of, variant
from efftx.models.build import build_model
from tests.tolerances import ROUNDING, assert_close

CPU = torch.device("cpu")
CONFIG = variant("dense", depth=2, length=24, batch=2)


def copy_weights(ours: nn.Module, plain: PlainTransformer) -> None:
    pairs = [(plain.tokens.weight, ours.embedding.weight), (plain.positions.weight, ours.positions.table)]
    for block, own in zip(plain.blocks, ours.blocks, strict=True):
        attention, two = own.attention.core.project, own.feedforward.core.layers
        qkv = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])
        pairs += [(block.qkv.weight, qkv), (block.out.weight, attention.o.weight)]
        pairs += [(block.up.weight, two.w1.weight), (block.up.bias, two.w1.bias)]
        pairs += [(block.down.weight, two.w2.weight), (block.down.bias, two.w2.bias)]
    pairs += [(plain.head.weight, ours.head.linear.weight), (plain.head.bias, ours.head.linear.bias)]
    with torch.no_grad():
        for into, given in pairs:
            into.copy_(given)


def test_it_has_our_parameters_and_with_our_weights_our_loss() -> None:
    ours = build_model(CONFIG, VOCAB_SIZE, CPU, torch.float64)
    plain = PlainTransformer(CONFIG, VOCAB_SIZE).double()
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in ours.parameters())
    copy_weights(ours, plain)
    for norm in [module for module in plain.modules() if isinstance(module, nn.LayerNorm)]:
        norm.eps = CONFIG.norm_eps
    targets = torch.randint(1, VOCAB_SIZE, (2, 24))
    inputs = nn.functional.pad(targets[:, :-1], (1, 0))
    losses, _ = ours(targets, losses=True, hits=False)
    assert_close(plain(inputs, targets), losses.mean(), ROUNDING)


def test_both_loops_learn_their_one_batch() -> None:
    plain, ours = plain_step(CONFIG, CPU, VOCAB_SIZE), step_of(CONFIG, CPU)
    first, (first_of_ours, norm) = plain(), ours()
    assert norm > 0
    for _ in range(20):
        last, (last_of_ours, _) = plain(), ours()
    assert last < first - 0.5
    assert last_of_ours < first_of_ours - 0.5


def test_it_stands_first_so_that_every_row_is_compared_with_it() -> None:
    words = [f"names={PLAIN},dense", "depths=1", "lengths=32", "batch=1", "repeats=1"]
    plain, dense = bench.run("train", words)["rows"]
    assert plain["peer"]
    assert not dense["peer"]
    assert plain["flops"] == dense["flops"]
    assert dense["ratio_to_first"] == dense["seconds"] / plain["seconds"]

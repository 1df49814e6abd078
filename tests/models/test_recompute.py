"""A recomputed stack has the bits of a stored one, gradients among them, and memory that grows by a row a block."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from efftx.bench.stacks import peak_of_step
from efftx.config.compose import compose
from efftx.config.schema import Config
from efftx.data.dataset import Batch
from efftx.errors import UserError
from efftx.models.build import build_model
from efftx.plan.memory import activation_bytes
from efftx.training.step import loss_of
from tests.test_plan import MEMORY_TOLERANCE

CPU = torch.device("cpu")
SMOKE = ["size=smoke", "data.path=efftx:samples/c4", "data=c4", "dropout=0.2", "recompute.enabled=true"]
DECODER = ["model=transformer", "attention_dropout=0.2", *SMOKE]
STACKS = {
    "full and local": [*DECODER, "attention=[full,local]"],
    "strided": [*DECODER, "attention=[strided,fixed]", "strided.stride=8", "fixed.stride=8"],
    "hashed": [*DECODER, "attention=[lsh,local]", "lsh.chunk_len=8", "lsh.n_hashes=2"],
    "sparse": [*DECODER, "sparse_ff.N=8", "chunking.ff=16"],
    "encoder-decoder": ["model=scaling", *SMOKE],
    "concatenated": ["model=terraformer", "reversible.enabled=false", *SMOKE],
}


def batch_of(config: Config) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> Tensor:
        return torch.randint(3, 200, (2, length), generator=generator)

    inputs = None if config.stack == "decoder" else draw(config.data.length)
    tokens = draw(config.target_length)
    return Batch(tokens, torch.ones(tokens.shape), inputs)


def step(words: list[str]) -> tuple[Tensor, dict[str, Tensor | None]]:
    config = compose(words)
    model = build_model(config, 359, CPU)
    torch.manual_seed(1)
    loss = loss_of(model, batch_of(config))
    after = torch.rand(1)  # what is drawn later does not depend on it
    loss.backward()
    return torch.cat([loss.detach()[None], after]), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", STACKS)
def test_losses_and_gradients_keep_their_bits(name: str) -> None:
    loss, gradients = step(STACKS[name])
    stored_loss, stored = step([*STACKS[name], "recompute.enabled=false"])
    assert torch.equal(loss, stored_loss)
    assert gradients.keys() == stored.keys()
    for parameter, gradient in stored.items():
        found = gradients[parameter]
        assert (found is None) == (gradient is None)
        if gradient is not None and found is not None:
            assert torch.equal(found, gradient), parameter


def test_each_block_runs_twice_with_a_backward_pass_and_once_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from efftx.models.block import Block

    runs = []
    forward = Block.forward

    def counted(self: Block, *args: Any) -> Any:
        runs.append(self)
        return forward(self, *args)

    monkeypatch.setattr(Block, "forward", counted)
    config = compose(STACKS["full and local"])
    model = build_model(config, 359, CPU)
    loss_of(model, batch_of(config)).backward()
    assert len(runs) == 2 * config.n_layers
    runs.clear()
    with torch.no_grad():
        loss_of(model, batch_of(config))
    assert len(runs) == config.n_layers
    runs.clear()
    with torch.no_grad():
        loss_of(copy.deepcopy(model), batch_of(config))
    assert {id(block) for block in runs}.isdisjoint(map(id, model.blocks))


@pytest.mark.parametrize("name", ["encoder-decoder", "concatenated"])
def test_the_blocks_of_an_encoder_run_twice_as_well(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from efftx.models.block import Block

    runs: Counter[int] = Counter()
    forward = Block.forward

    def counted(self: Block, *args: Any) -> Any:
        runs[id(self)] += 1
        return forward(self, *args)

    monkeypatch.setattr(Block, "forward", counted)
    config = compose([*STACKS[name], "n_layers=2", "n_encoder_layers=3"])
    model = build_model(config, 359, CPU)
    loss_of(model, batch_of(config)).backward()
    assert runs == {id(block): 2 for block in model.modules() if isinstance(block, Block)}
    assert len(runs) == 5


@pytest.mark.parametrize("n_layers", [4, 8])
def test_memory_grows_by_a_blocks_input_and_is_what_is_planned(n_layers: int) -> None:
    words = [
        *DECODER,
        "attention_dropout=0",
        "data.length=256",
        "positions.axial_shape=[16,16]",
        "training.batch_size=4",
    ]
    config = compose([*words, f"n_layers={n_layers}"])
    peak, _ = peak_of_step(config, CPU, 359)
    assert activation_bytes(config, 359) == pytest.approx(peak, rel=MEMORY_TOLERANCE)
    stored = compose([*words, f"n_layers={n_layers}", "recompute.enabled=false"])
    assert peak < peak_of_step(stored, CPU, 359)[0] * 0.6


def test_beside_reversible_blocks_it_is_refused() -> None:
    with pytest.raises(UserError, match="both do without stored activations"):
        compose(["model=reformer", "data=duplicate", "recompute.enabled=true"])

"""What wraps a model (DDP and the like) wraps its losses too: they go through `forward`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from efftx.config.compose import compose
from efftx.data.dataset import Batch
from efftx.models.build import Model, build_model
from efftx.training.step import loss_of

MODELS = {
    "decoder": ("model=transformer", "data=duplicate"),
    "reversible decoder": ("model=reformer", "data=duplicate", "chunking.loss=16"),
    "encoder-decoder": ("model=scaling", "data=stdlib"),
    "concatenated": ("model=terraformer", "data=stdlib"),
}
VOCABULARY = 359


class Around(nn.Module):
    """Counts the calls of `inside`."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.calls = inside, 0

    def forward(self, *given: Any, **named: Any) -> Any:
        self.calls += 1
        return self.inside(*given, **named)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def model_and_batch(name: str) -> tuple[Model, Batch]:
    config = compose([*MODELS[name], "size=smoke", "dropout=0.1"])
    torch.manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (2, config.target_length))
    inputs = None if config.stack == "decoder" else torch.randint(1, VOCABULARY, (2, config.data.length))
    model = build_model(config, VOCABULARY, torch.device("cpu"), torch.float64)
    return model, Batch(tokens, torch.ones(tokens.shape, dtype=torch.float64), inputs)


def loss_and_gradients(wrapped: nn.Module, model: Model, batch: Batch) -> tuple[Tensor, list[Tensor | None]]:
    model.zero_grad()
    torch.manual_seed(1)
    loss = loss_of(wrapped, batch)
    loss.backward()
    return loss.detach(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_of_a_wrapped_model_is_the_models_own_bit_for_bit(name: str, alone: None) -> None:
    model, batch = model_and_batch(name)
    loss, gradients = loss_and_gradients(model, model, batch)
    around = Around(model)
    for wrapped in (around, DistributedDataParallel(model)):
        other, others = loss_and_gradients(wrapped, model, batch)
        assert torch.equal(other, loss)
        for gradient, expected in zip(others, gradients, strict=True):
            assert gradient is not None
            assert expected is not None
            assert torch.equal(gradient, expected)
    assert around.calls == 1

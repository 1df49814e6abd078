"""A small model with a tied weight, trained a few steps and saved: what the tests of checkpoints write and read."""

from __future__ import annotations

import torch
from torch import nn

from efftx.optim.optimizers import OptimizerConfig, make_optimizer
from efftx.runs.checkpoint import save_checkpoint

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


class Tied(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.out = nn.Linear(4, 7, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.out.weight = self.embedding.weight

    def forward(self, tokens_L):
        return self.out(self.inner(self.embedding(tokens_L)))


def train_steps(model, optimizer, first, last):
    for step in range(first, last + 1):
        generator = torch.Generator().manual_seed(step)
        tokens_L = torch.randint(0, 7, (16,), generator=generator)
        loss = nn.functional.cross_entropy(model(tokens_L), tokens_L.roll(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def make(name="adam", seed=0):
    model = Tied(seed)
    return model, make_optimizer(OptimizerConfig(name=name, lr=0.1), model.named_parameters())


def save(folder, step, *, score=None, keep=2, seed=None):
    model, optimizer = make(seed=step if seed is None else seed)
    train_steps(model, optimizer, 1, 1)
    return save_checkpoint(folder, step, model.state_dict(), optimizer, {"score": score}, keep=keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())

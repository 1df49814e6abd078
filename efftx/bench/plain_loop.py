"""What a training step of ours is measured against: an ordinary Transformer in a plain loop, as one writes it by hand.

Pre-norm blocks, one matrix for queries, keys and values, PyTorch's fused attention, its AdamW and gradient clipping:
nothing is chosen by configuration, nothing is counted or checked on the way.

Shape suffixes: B batch, L length, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efftx.config.schema import Config


class _PlainBlock(nn.Module):
    def __init__(self, d_model: int, d_ff: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.up, self.down = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x_BLD: Tensor) -> Tensor:
        batch, length, width = x_BLD.shape
        q, k, v = self.qkv(self.norm_1(x_BLD)).view(batch, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BLD = x_BLD + self.out(heads.transpose(1, 2).reshape(batch, length, width))
        y: Tensor = x_BLD + self.down(F.relu(self.up(self.norm_2(x_BLD))))
        return y


class PlainTransformer(nn.Module):
    """A decoder of the shape of a configuration, learned positions, the weights of `model=transformer`, no dropout."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.d_model)
        self.positions = nn.Embedding(config.data.length, config.d_model)
        self.blocks = nn.ModuleList(
            _PlainBlock(config.d_model, config.d_ff, config.n_heads) for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, vocab_size)

    def forward(self, inputs_BL: Tensor, targets_BL: Tensor) -> Tensor:
        """The mean cross entropy in nats, a scalar; `inputs_BL` are the targets shifted right by one."""
        x = self.tokens(inputs_BL) + self.positions.weight[: inputs_BL.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets_BL.flatten())


def plain_step(config: Config, device: torch.device, vocab_size: int) -> Callable[[], object]:
    """One training step: forward, backward, clipping, AdamW, always on the same batch, as `stacks.step_of`."""
    torch.manual_seed(config.seed)
    model = PlainTransformer(config, vocab_size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr, betas=(0.9, 0.95), weight_decay=0.1)
    targets_BL = torch.randint(1, vocab_size, (config.training.batch_size, config.data.length), device=device)
    inputs_BL = F.pad(targets_BL[:, :-1], (1, 0))

    def step() -> float:
        loss = model(inputs_BL, targets_BL)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step

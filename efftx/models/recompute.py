"""Recomputation (Sparse Transformers, figure 4): a block keeps its input and runs again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(block: nn.Module) -> None:
    """From now on the block's forward pass keeps its inputs alone; the backward pass runs it once more.

    Whatever is drawn (dropout, hash rotations) is drawn again alike, so that outputs and gradients keep their bits.
    The module stays what it is: its names, weights and form for decoding.
    """
    block.forward = partial(_run, block.forward)


def _run(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **options)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True, **options)

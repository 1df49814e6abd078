"""stand-in until the op lands"""
import torch
from torch import Tensor


def quantize_rows(w: Tensor) -> tuple[Tensor, Tensor]:
    scale = w.abs().amax(1).clamp_min(1e-12) / 127
    return (w / scale[:, None]).round().to(torch.int8), scale


def int8_linear(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    y = x @ (q.to(x.dtype) * scale[:, None].to(x.dtype)).t()
    return y if bias is None else y + bias

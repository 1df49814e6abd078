"""Optimisers: PyTorch's Adam and AdamW, and Adafactor as the Reformer's authors ran it.

Every update runs tensor by tensor (no `foreach`, no fused kernel), so that it gives the same bits on every run and
works on the meta device.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from efftx.optim.settings import OptimizerConfig, check_optimizer

ADAFACTOR_WEIGHT_DECAY = 1e-5
ADAMW_WEIGHT_DECAY = 0.01


def make_optimizer(
    config: OptimizerConfig, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]
) -> torch.optim.Optimizer:
    """The optimiser that the config names, over the parameters that need a gradient; a tied one is taken once.

    AdamW decays tensors of two or more dimensions only (matrices, not biases and gains) and scales the decay by the
    learning rate, as Sparse Transformers do. The parameters' names go into `param_groups[i]["param_names"]`, from which
    a checkpoint takes the names of the state's tensors. Raises UserError where `check_optimizer` does.
    """
    check_optimizer(config)
    seen: set[int] = set()
    named: list[tuple[str, torch.nn.Parameter]] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            named.append((name, parameter))
    betas = (config.betas[0], config.betas[1])
    if config.name == "adam":
        return torch.optim.Adam(named, lr=config.lr, betas=betas, eps=config.eps, foreach=False, fused=False)
    if config.name == "adamw":
        decay = ADAMW_WEIGHT_DECAY if config.weight_decay is None else config.weight_decay
        groups: list[dict[str, Any]] = [
            {"params": [pair for pair in named if pair[1].dim() >= 2], "weight_decay": decay},
            {"params": [pair for pair in named if pair[1].dim() < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, foreach=False, fused=False)
    decay = ADAFACTOR_WEIGHT_DECAY if config.weight_decay is None else config.weight_decay
    return Adafactor(
        named,
        lr=config.lr,
        weight_decay=decay,
        weight_decay_n_steps=config.weight_decay_n_steps,
        decay_exponent=config.decay_exponent,
    )


class Adafactor(torch.optim.Optimizer):
    """Adafactor without momentum (Shazeer & Stern 2018), as in the authors' code of Reformer and Terraformer.

    With `step` counting from 0 (the updates already made) and t = step + 1: beta2(t) = 1 - t^-decay_exponent, so that
    the first update forgets the zero initialisation. The second moment of a tensor of two or more dimensions is
    factored over its last two axes into means over rows and columns; eps1 is added to the moments, not to g^2. The
    update is divided by max(1, RMS(update)), scaled by lr * max(RMS(weights), eps2), and the weights shrink by
    `weight_decay`, which is not scaled by lr and falls linearly to 0 over `weight_decay_n_steps` (0: it stays).

    The axes are those of our matrices: the authors keep a sparse feed-forward layer's weights by blocks, as in
    (d_model, d_ff / N, N), and hash attention's projections by head, and factor over the last two axes of those.

    PyTorch's own Adafactor caps the step at 1/sqrt(t), scales the decay by lr and adds eps1 elsewhere: not this one.
    Moments are float32 (float64 for float64 weights); `step` is a Python int, so nothing waits for a device.
    """

    EPS1 = 1e-16
    EPS2 = 1e-3
    CLIP_RMS = 1.0

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float = ADAFACTOR_WEIGHT_DECAY,
        weight_decay_n_steps: int = 0,
        decay_exponent: float = 0.8,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "weight_decay_n_steps": weight_decay_n_steps,
            "decay_exponent": decay_exponent,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure`, if given, recomputes the loss and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel() > 0:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        grad, weights = parameter.grad.to(dtype), parameter.to(dtype)  # type: ignore[union-attr]
        factored = grad.dim() >= 2
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            if factored:
                state["v_row"] = grad.new_zeros(grad.shape[:-1])
                state["v_col"] = grad.new_zeros(grad.shape[:-2] + grad.shape[-1:])
            else:
                state["v"] = torch.zeros_like(grad)

        step = state["step"]
        beta2 = 1.0 - (step + 1.0) ** -group["decay_exponent"]
        grad_squared = grad.square()
        if factored:
            v_row = state["v_row"].mul_(beta2).add_(grad_squared.mean(-1), alpha=1.0 - beta2)
            v_col = state["v_col"].mul_(beta2).add_(grad_squared.mean(-2), alpha=1.0 - beta2)
            row_factor = (v_row.mean(-1, keepdim=True) / (v_row + self.EPS1)).sqrt()
            col_factor = (v_col + self.EPS1).rsqrt()
            update = grad * row_factor.unsqueeze(-1) * col_factor.unsqueeze(-2)
        else:
            v = state["v"].mul_(beta2).add_(grad_squared, alpha=1.0 - beta2)
            update = grad * (v + self.EPS1).rsqrt()

        # Tensors of no dimension, not Python floats: .item() would wait for the device, and meta has no value to give.
        update = update / (_rms(update) / self.CLIP_RMS).clamp(min=1.0)
        scale = group["lr"] * _rms(weights).clamp(min=self.EPS2)
        n_steps = group["weight_decay_n_steps"]
        decay = group["weight_decay"] * (max(n_steps - step, 0) / n_steps if n_steps else 1.0)
        parameter.copy_((1.0 - decay) * weights - scale * update)
        state["step"] = step + 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, bit for bit: PyTorch's own would round float32 moments to the dtype of the weights."""
        super().load_state_dict(state_dict)
        indices = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, parameter in zip(indices, parameters, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                is_tensor = isinstance(value, Tensor)
                self.state[parameter][key] = value.to(parameter.device, copy=True) if is_tensor else value


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()

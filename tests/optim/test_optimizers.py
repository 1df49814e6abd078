"""Optimisers against naive oracles in float64, and their states through a round trip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from efftx.errors import UserError
from efftx.optim.optimizers import Adafactor, OptimizerConfig, check_optimizer, make_optimizer

SHAPES = {"gain": (5,), "matrix": (4, 3), "heads": (2, 3, 4), "row": (1, 6), "scalar": ()}


def naive_adafactor(weights, grads, lr, weight_decay, n_steps, exponent=0.8):
    """Adafactor as its description reads, for one tensor over all its gradients, in float64 loops."""
    w = weights.astype(np.float64)
    row = col = full = 0.0
    for step, g in enumerate(grads):
        g = g.astype(np.float64)
        beta2 = 1 - (step + 1) ** -exponent
        if w.ndim >= 2:
            row = beta2 * row + (1 - beta2) * (g**2).mean(axis=-1)
            col = beta2 * col + (1 - beta2) * (g**2).mean(axis=-2)
            y = np.empty_like(g)
            for place in np.ndindex(*g.shape):
                *outer, i, j = place
                mean_row = row[tuple(outer)].mean()
                y[place] = g[place] * np.sqrt(mean_row / (row[(*outer, i)] + 1e-16)) / np.sqrt(col[(*outer, j)] + 1e-16)
        else:
            full = beta2 * full + (1 - beta2) * g**2
            y = g / np.sqrt(full + 1e-16)
        y = y / max(1.0, np.sqrt((y**2).mean()) / 1.0)
        decay = weight_decay * (max(n_steps - step, 0) / n_steps if n_steps else 1.0)
        w = (1 - decay) * w - lr * max(np.sqrt((w**2).mean()), 1e-3) * y
    return w


def parameters(seed=0, dtype=torch.float64, scale=0.5):
    generator = torch.Generator().manual_seed(seed)
    return {n: nn.Parameter(torch.randn(s, generator=generator, dtype=dtype) * scale) for n, s in SHAPES.items()}


def gradients(seed, steps=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    # Growing and shrinking, so that the clip is active in some steps and idle in others.
    return [
        {n: torch.randn(s, generator=generator, dtype=dtype) * 3.0**-k for n, s in SHAPES.items()} for k in range(steps)
    ]


def run(optimizer, named, grads):
    for step_grads in grads:
        for name, parameter in named.items():
            parameter.grad = step_grads[name].clone()
        optimizer.step()


@pytest.mark.parametrize("n_steps", [0, 3, 100])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adafactor_is_the_described_update(weight_decay, n_steps):
    named, grads = parameters(), gradients(1)
    before = {n: p.detach().numpy().copy() for n, p in named.items()}
    optimizer = Adafactor(list(named.items()), lr=0.1, weight_decay=weight_decay, weight_decay_n_steps=n_steps)
    run(optimizer, named, grads)
    for name, parameter in named.items():
        expected = naive_adafactor(before[name], [g[name].numpy() for g in grads], 0.1, weight_decay, n_steps)
        # float64 on both sides: only the order of a few sums differs.
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-14, err_msg=name)


def test_terraformers_c4_adafactor_forgets_its_weight_decay_and_its_arxiv_one_more_of_its_moments():
    c4 = OptimizerConfig(name="adafactor", lr=1.0, weight_decay=1e-5, weight_decay_n_steps=100_000)
    arxiv = OptimizerConfig(name="adafactor", lr=1.0, decay_exponent=0.9)
    for config, n_steps, exponent in ((c4, 100_000, 0.8), (arxiv, 0, 0.9)):
        check_optimizer(config)
        named, grads = parameters(), gradients(4)
        before = {n: p.detach().numpy().copy() for n, p in named.items()}
        run(make_optimizer(config, named.items()), named, grads)
        for name, parameter in named.items():
            given = [g[name].numpy() for g in grads]
            expected = naive_adafactor(before[name], given, 1.0, 1e-5, n_steps, exponent)
            np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-14, err_msg=name)


def test_adafactor_in_float32_stays_near_the_float64_oracle():
    named, grads = parameters(dtype=torch.float32), gradients(2, dtype=torch.float32)
    before = {n: p.detach().numpy().copy() for n, p in named.items()}
    run(Adafactor(list(named.items()), lr=0.1), named, grads)
    for name, parameter in named.items():
        expected = naive_adafactor(before[name], [g[name].numpy() for g in grads], 0.1, 1e-5, 0)
        # five updates, each some ten roundings of 2^-24
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_first_update_of_adafactor_forgets_the_zero_moments():
    weight = nn.Parameter(torch.tensor([2.0, -2.0], dtype=torch.float64))
    weight.grad = torch.tensor([1e-3, -5.0], dtype=torch.float64)
    Adafactor([("w", weight)], lr=0.1, weight_decay=0.0).step()
    # beta2(1) = 0, so v = g^2 and the update is sign(g), of RMS 1; RMS(w) = 2, so the step is 0.1 * 2
    torch.testing.assert_close(weight.detach(), torch.tensor([1.8, -1.8], dtype=torch.float64), rtol=1e-9, atol=0)


def test_adafactors_weight_decay_ignores_the_learning_rate():
    weight = nn.Parameter(torch.tensor([4.0], dtype=torch.float64))
    weight.grad = torch.zeros_like(weight)
    optimizer = Adafactor([("w", weight)], lr=123.0, weight_decay=0.25, weight_decay_n_steps=2)
    seen = []
    for _ in range(3):
        optimizer.step()
        seen.append(weight.item())
    assert seen == [3.0, 3.0 * 0.875, 3.0 * 0.875]  # decay 1/4, 1/8, 0


def test_weights_of_zero_move_by_the_floor_of_the_scale():
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    weight.grad = torch.ones_like(weight)
    Adafactor([("w", weight)], lr=0.5, weight_decay=0.0).step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), -0.5e-3, dtype=torch.float64), rtol=1e-9, atol=0)


def test_a_zero_gradient_and_an_empty_tensor_do_no_harm():
    named = {"matrix": nn.Parameter(torch.ones(2, 3)), "empty": nn.Parameter(torch.ones(0, 3))}
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    Adafactor(list(named.items()), lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(named["matrix"].detach(), torch.ones(2, 3), rtol=0, atol=0)


def test_a_parameter_without_a_gradient_stays():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Adafactor([("w", weight)], lr=0.1)
    optimizer.step()
    assert torch.equal(weight, torch.ones(2, 2))
    assert not optimizer.state[weight]


@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor"])
def test_every_optimiser_steps_on_the_meta_device(name):
    weight = nn.Parameter(torch.empty(4, 4, device="meta"))
    weight.grad = torch.empty_like(weight)
    optimizer = make_optimizer(OptimizerConfig(name=name), [("w", weight)])
    optimizer.step()
    optimizer.step()
    moments = [v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor) and v.dim() > 0]
    assert moments
    assert all(v.device.type == "meta" for v in moments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_adafactors_state_dict_comes_back_bit_for_bit(dtype):
    named, grads = parameters(dtype=dtype), gradients(3, dtype=dtype)
    optimizer = Adafactor(list(named.items()), lr=0.1)
    run(optimizer, named, grads[:3])
    copies = {n: nn.Parameter(p.detach().clone()) for n, p in named.items()}
    other = Adafactor(list(copies.items()), lr=9.0)
    other.load_state_dict(optimizer.state_dict())
    run(optimizer, named, grads[3:])
    run(other, copies, grads[3:])
    for name in named:
        assert torch.equal(named[name], copies[name]), name
        for key, value in optimizer.state[named[name]].items():
            loaded = other.state[copies[name]][key]
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(loaded)), (name, key)


def test_moments_of_half_precision_weights_are_float32():
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    optimizer = Adafactor([("w", weight)], lr=0.1)
    optimizer.step()
    assert weight.dtype is torch.bfloat16
    assert optimizer.state[weight]["v_row"].dtype is torch.float32


def test_the_factored_state_is_a_row_and_a_column_and_not_a_matrix():
    weight = nn.Parameter(torch.ones(2, 30, 40))
    weight.grad = torch.ones_like(weight)
    optimizer = Adafactor([("w", weight)], lr=0.1)
    optimizer.step()
    assert optimizer.state[weight]["v_row"].shape == (2, 30)
    assert optimizer.state[weight]["v_col"].shape == (2, 40)


def test_adafactor_returns_the_closures_loss():
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = Adafactor([("w", weight)], lr=0.1)

    def closure():
        loss = (weight**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 9.0
    assert weight.item() < 3.0


def test_adam_is_the_textbook_update():
    weight = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = make_optimizer(OptimizerConfig(name="adam", lr=0.1, betas=[0.5, 0.75], eps=0.0), [("w", weight)])
    weight.grad = torch.tensor([2.0, -4.0], dtype=torch.float64)
    optimizer.step()  # m = g/2, v = g^2/4, both corrected back to g and g^2: a step of lr * sign(g)
    torch.testing.assert_close(weight.detach(), torch.tensor([0.9, 2.1], dtype=torch.float64), rtol=1e-12, atol=0)


def test_adamw_decays_matrices_by_the_learning_rate_and_leaves_gains_alone():
    matrix, gain = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(OptimizerConfig(name="adamw", lr=0.5, weight_decay=0.1), [("m", matrix), ("g", gain)])
    matrix.grad, gain.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert torch.equal(matrix, torch.full((2, 2), 0.95))
    assert torch.equal(gain, torch.ones(2))


def test_adamw_without_a_gain_has_no_empty_group():
    optimizer = make_optimizer(OptimizerConfig(name="adamw"), [("m", nn.Parameter(torch.ones(2, 2)))])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01]


def test_each_optimiser_has_its_own_default_weight_decay():
    weight = nn.Parameter(torch.ones(2, 2))
    decays = {
        name: make_optimizer(OptimizerConfig(name=name), [("w", weight)]).param_groups[0]["weight_decay"]
        for name in ("adam", "adamw", "adafactor")
    }
    assert decays == {"adam": 0, "adamw": 0.01, "adafactor": 1e-5}


def test_tied_and_frozen_parameters_are_not_updated_twice_or_at_all():
    tied, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = make_optimizer(OptimizerConfig(), [("a", tied), ("b", tied), ("c", frozen)])
    assert optimizer.param_groups[0]["param_names"] == ["a"]


@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor"])
def test_no_optimiser_takes_a_fused_or_grouped_path(name):
    optimizer = make_optimizer(OptimizerConfig(name=name), [("w", nn.Parameter(torch.ones(2, 2)))])
    assert not any(group.get("foreach") or group.get("fused") for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (OptimizerConfig(name="adafctor"), "adafctor"),
        (OptimizerConfig(betas=[0.9]), "optimizer.betas"),
        (OptimizerConfig(name="adam", decay_exponent=0.9), "does not read it"),
        (OptimizerConfig(name="adam", weight_decay=0.1), "does not read it"),
        (OptimizerConfig(name="adafactor", betas=[0.9, 0.95]), "does not read it"),
        (OptimizerConfig(name="adamw", weight_decay_n_steps=10), "does not read it"),
    ],
)
def test_a_wrong_optimiser_is_refused_by_name(config, says):
    with pytest.raises(UserError) as caught:
        check_optimizer(config)
    assert says in caught.value.message


def test_the_nearest_optimiser_is_offered():
    with pytest.raises(UserError) as caught:
        check_optimizer(OptimizerConfig(name="adafctor"))
    assert "adafactor" in caught.value.hint

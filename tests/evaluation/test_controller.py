"""How surely controllers choose and which units they never choose, on hand-set weights and against loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efftx.config.compose import compose
from efftx.config.schema import Config
from efftx.data.dataset import Batch
from efftx.evaluation.controller import controller_statistics
from efftx.evaluation.evaluate import Evaluated, evaluate
from efftx.layers.sparse_ff import SparseFF
from efftx.models.build import Model, build_model
from efftx.ops.concatenation import cut_after

CPU = torch.device("cpu")
N, VOCAB = 4, 359
DECODER = ["model=transformer", "data=stdlib", "size=smoke", "sparse_ff.N=4"]
MODELS = {
    "decoder": DECODER,
    "decoder, chunked": [*DECODER, "chunking.ff=5"],
    "decoder, reversible": [*DECODER, "reversible.enabled=true", "reversible.merge=mean"],
    "encoder-decoder": ["model=scaling", "data=c4", "data.tokenizer=bytes", "size=smoke"],
    "terraformer": ["model=terraformer", "data=c4", "data.tokenizer=bytes", "size=smoke"],
}


def made(name: str, *more: str) -> tuple[Model, tuple[Tensor, ...]]:
    """A model in evaluation mode, and two rows: tokens, weights and, for two stacks, inputs, the last ones padding."""
    config: Config = compose([*MODELS[name], "dropout=0", *more])
    model = build_model(config, VOCAB, CPU).eval()
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 250, (2, config.target_length), generator=generator)
    weights = torch.ones(tokens.shape)
    if config.stack == "decoder":
        return model, (tokens, weights)
    inputs = torch.randint(3, 250, (2, config.data.length), generator=generator)
    inputs[1, -9:] = 0
    tokens[1, -2:] = 0
    weights[1, -2:] = 0
    return model, (tokens, weights, inputs)


def controllers(model: nn.Module) -> list[SparseFF]:
    return [layer for layer in model.modules() if isinstance(layer, SparseFF)]


def set_logits(model: nn.Module, logits_N: list[float]) -> None:
    """Every controller gives every block these logits, whatever the token."""
    with torch.no_grad():
        for layer in controllers(model):
            layer.c2.zero_()
            layer.c_bias.copy_(torch.tensor(logits_N).repeat(len(layer.c_bias) // len(logits_N)))


@pytest.mark.parametrize("name", MODELS)
def test_logits_far_apart_are_never_overturned_and_three_units_of_four_are_dead(name: str) -> None:
    model, given = made(name)
    assert len(controllers(model)) >= 1
    set_logits(model, [30.0, 0.0, 0.0, 0.0])
    found = controller_statistics(model, *given)
    assert found.pop("oracle_agreement") == pytest.approx(100 / N, abs=10)
    assert found == {"unit_agreement": 100.0, "dead_units": 100.0 * (N - 1) / N}


def test_a_controller_that_is_the_first_matrix_chooses_as_the_oracle() -> None:
    model, given = made("decoder", "sparse_ff.rank=32", "sparse_ff.form=paper")
    with torch.no_grad():
        for layer in controllers(model):
            layer.b1.normal_()
            layer.c1.copy_(torch.eye(32))
            layer.c2.copy_(layer.w1)
            layer.c_bias.copy_(layer.b1)
    assert controller_statistics(model, *given)["oracle_agreement"] == 100.0
    oracle, given = made("decoder", "sparse_ff.controller=oracle")
    assert controller_statistics(oracle, *given)["oracle_agreement"] == 100.0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("controller", ["frozen", "oracle", "token"])
def test_a_choice_that_is_not_learned_has_no_noise_to_disagree_with(name: str, controller: str) -> None:
    model, given = made(name, f"sparse_ff.controller={controller}")
    found = controller_statistics(model, *given)
    assert found["unit_agreement"] == 100.0
    assert 0.0 <= found["dead_units"] < 75.0


def test_equal_logits_agree_once_in_n() -> None:
    model, given = made("encoder-decoder")
    set_logits(model, [0.0] * N)
    found = controller_statistics(model, *given)
    choices = sum(len(layer.c_bias) // N for layer in controllers(model)) * 60
    assert found["unit_agreement"] == pytest.approx(100 / N, abs=100 * 5 * math.sqrt(0.19 / choices))
    assert found["dead_units"] == 75.0, "without noise the first of equals is chosen"


def test_two_logits_at_the_distance_of_the_noise_agree_as_a_logistic_difference_says() -> None:
    # The difference of two Gumbel variables is logistic: P(tau * difference < gap) = 1 / (1 + exp(-gap / tau)).
    model, given = made("encoder-decoder")
    set_logits(model, [0.1, 0.0, -30.0, -30.0])
    found = controller_statistics(model, *given)
    choices = sum(len(layer.c_bias) // N for layer in controllers(model)) * 60
    expected = 1 / (1 + math.exp(-1))
    spread = math.sqrt(expected * (1 - expected) / choices)
    assert found["unit_agreement"] == pytest.approx(100 * expected, abs=100 * 5 * spread)


@pytest.mark.parametrize("name", MODELS)
def test_dead_units_are_those_that_no_real_token_chooses_in_any_layer(name: str) -> None:
    model, given = made(name)
    read: dict[str, Tensor] = {}
    for place, layer in model.named_modules():
        if isinstance(layer, SparseFF):
            layer.register_forward_pre_hook(lambda _, x, place=place: read.__setitem__(place, x[0]))  # type: ignore
    with torch.no_grad():
        model(*given[:1], *given[2:], losses=True)
    dead = units = 0
    for place, x_BKD in read.items():
        layer = model.get_submodule(place)
        quiet_BKG = layer.choices(x_BKD)[0]  # type: ignore[operator]
        alive = set()
        for b in range(2):
            for rows in real_rows(place, x_BKD, quiet_BKG, given, b):
                alive |= {(g, int(unit)) for g, unit in enumerate(rows)}
        units += quiet_BKG.shape[-1] * N
        dead += quiet_BKG.shape[-1] * N - len(alive)
    assert controller_statistics(model, *given)["dead_units"] == pytest.approx(100 * dead / units)


def real_rows(place: str, x_BKD: Tensor, quiet_BKG: Tensor, given: tuple[Tensor, ...], b: int) -> list[Tensor]:
    if len(given) == 2:
        return list(quiet_BKG[b])
    n_inputs, n_targets = int((given[2][b] != 0).sum()), int(given[1][b].sum())
    if place.startswith("encoder"):
        return list(quiet_BKG[b, :n_inputs])
    if x_BKD.shape[1] == given[0].shape[1]:
        return list(quiet_BKG[b, :n_targets])
    own = cut_after(quiet_BKG, (given[2] != 0).sum(1), given[0].shape[1])
    return [*quiet_BKG[b, :n_inputs], *own[b, :n_targets]]


@pytest.mark.parametrize("made_of", [["encoder-decoder"], ["terraformer", "lsh.full_below=1024"]])
def test_what_stands_behind_the_last_target_changes_nothing(made_of: list[str]) -> None:
    model, (tokens, weights, inputs) = made(*made_of)
    first = controller_statistics(model, tokens, weights, inputs)
    assert 0 < first["unit_agreement"] < 100
    padded, real = tokens.clone(), tokens.clone()
    padded[1, -2] = 77  # the decoder's last input, behind its last target
    assert controller_statistics(model, padded, weights, inputs) == first
    real[1] = 77
    assert controller_statistics(model, real, weights, inputs) != first


def test_chunks_change_neither_choices_nor_noise() -> None:
    whole, given = made("decoder")
    assert controller_statistics(whole, *given) == controller_statistics(made("decoder, chunked")[0], *given)


def test_a_dense_model_has_no_controller() -> None:
    class Unasked(nn.Module):
        def hidden(self, tokens_BL: Tensor) -> Tensor:
            raise AssertionError

    tokens = torch.ones(1, 2, dtype=torch.int64)
    assert controller_statistics(Unasked(), tokens, torch.ones(1, 2)) == {}


class Rows:
    """Two batches of tokens; `first` alone where it is asked for."""

    name, variant, checksum, vocab_size, unit = "rows", "rows", "0", VOCAB, "nats/token"

    def __init__(self, given: tuple[Tensor, ...]) -> None:
        self.given = given
        self.length = given[0].shape[1]

    def n_batches(self, split: str, batch_size: int) -> int:
        return 2

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        tokens = self.given[0] if step == 0 else self.given[0].flip(0).roll(1, 1)
        return Batch(tokens, *self.given[1:])


@pytest.mark.parametrize("name", ["decoder, reversible", "encoder-decoder", "terraformer"])
def test_an_evaluation_adds_them_for_its_first_batch_and_leaves_the_rest_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = made(name)
    model.train()

    def run(batches: int) -> tuple[dict[str, float], Tensor]:
        rows: Any = Rows(given)
        over = Evaluated(rows, "valid", 2, batches, before_batch=lambda i: torch.manual_seed(i))
        found = evaluate(model, over, CPU)
        return found, torch.rand(3)

    (one, _), (two, drawn) = run(1), run(2)
    torch.manual_seed(0)
    expected = controller_statistics(model.eval(), *given)
    assert {name: two[name] for name in expected} == expected
    assert {name: one[name] for name in expected} == expected
    assert one["loss"] != two["loss"]
    assert not any(layer._forward_pre_hooks for layer in model.modules())
    monkeypatch.setattr("efftx.evaluation.evaluate.controller_statistics", lambda *_: {})
    without, drawn_without = run(2)
    assert without == {name: value for name, value in two.items() if name not in expected}
    assert torch.equal(drawn, drawn_without)


def test_hooks_are_gone_after_a_failure() -> None:
    model, given = made("decoder")
    with pytest.raises(IndexError):
        controller_statistics(model, torch.full_like(given[0], VOCAB + 1), given[1])
    assert not any(layer._forward_pre_hooks for layer in model.modules())

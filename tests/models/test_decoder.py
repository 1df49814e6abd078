"""The language model: what it may see, how its streams join, what it keeps, and the same meaning in every form."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import efftx.models.block as block_module
from efftx.models.decoder import Decoder
from efftx.ops import reversible
from efftx.ops.recompute_state import RecomputeState
from tests.tolerances import REBUILT_GRADIENT, ROUNDING, assert_close

CAUSAL = {
    "transformer": ("model=transformer",),
    "transformer, shared": ("model=transformer", "share_qk=true", "full.query_block=7"),
    "local": ("model=reformer", "attention=[local]"),
    "reversible full": ("model=reformer", "attention=[full]", "reversible.merge=mean"),
    "local and full": ("model=transformer", "attention=[local,full]"),
}
EVERY_KIND = ("model=reformer", "attention=[local,local,lsh,local]", "n_layers=5")


@pytest.mark.parametrize("name", CAUSAL)
def test_row_t_is_predicted_from_the_tokens_before_t_alone(build, tokens, name: str) -> None:
    model = build(*CAUSAL[name])
    given = tokens()
    logits = model(given)
    for place in (0, 5, 31, 63):
        other = given.clone()
        other[:, place] = (other[:, place] + 1) % 23
        changed = (model(other) != logits).any(-1)
        assert not changed[:, : place + 1].any(), f"token {place} is seen from before it"
        assert changed[:, place + 1 : place + 2].all(), f"token {place} is not seen by the next"


@pytest.mark.parametrize("family", ["transformer", "reformer"])
def test_a_zero_enters_in_front_and_the_last_token_is_not_read(build, tokens, family: str) -> None:
    model = build(f"model={family}", "n_layers=1")
    read: list[Tensor] = []
    model.embedding.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    given = tokens()
    model(given)
    assert torch.equal(read[0], torch.cat([torch.zeros(2, 1, dtype=torch.int64), given[:, :-1]], dim=1))


@pytest.mark.parametrize("length", [1, 7, 33])
@pytest.mark.parametrize("family", ["transformer", "reformer"])
def test_rows_may_be_shorter_than_the_configured_length(build, tokens, family: str, length: int) -> None:
    model = build(f"model={family}")
    nll, correct = model(tokens(length), losses=True)
    assert nll.shape == correct.shape == (2, length)
    assert nll.isfinite().all()


def test_the_losses_are_the_cross_entropy_of_the_logits(build, tokens) -> None:
    model = build("model=transformer")
    given = tokens()
    logits = model(given)
    nll, correct = model(given, losses=True)
    expected = -logits.log_softmax(-1).gather(-1, given[..., None])[..., 0]
    assert_close(nll, expected, ROUNDING)
    assert torch.equal(correct, logits.argmax(-1) == given)


@pytest.mark.parametrize("slices", [(), ("chunking.loss=10",)])
def test_without_hits_the_losses_are_the_same_bits(build, tokens, slices: tuple[str, ...]) -> None:
    model = build("model=transformer", *slices).eval()
    given = tokens()
    nll, correct = model(given, losses=True)
    alone, none = model(given, losses=True, hits=False)
    assert torch.equal(alone, nll)
    assert correct is not None
    assert none is None


def losses_and_gradients(model: Decoder, given: Tensor) -> dict[str, Tensor | None]:
    torch.manual_seed(3)
    nll, correct = model(given, losses=True)
    model.zero_grad(set_to_none=True)
    (nll * torch.linspace(0, 1, nll.shape[1], dtype=nll.dtype)).sum().backward()
    return {"nll": nll, "correct": correct.double(), **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize("slices", [("chunking.loss=10",), ("chunking.ff=24",), ("chunking.ff=1", "chunking.loss=64")])
@pytest.mark.parametrize("family", ["transformer", "reformer"])
def test_slices_change_neither_losses_nor_gradients(build, tokens, family: str, slices: tuple[str, ...]) -> None:
    whole = build(f"model={family}", "chunking.ff=0", "chunking.loss=0")
    sliced = build(f"model={family}", "chunking.ff=0", "chunking.loss=0", *slices)
    expected, found = (losses_and_gradients(model, tokens()) for model in (whole, sliced))
    for name, value in expected.items():
        assert_close(found[name], value, REBUILT_GRADIENT, name)


@pytest.mark.parametrize(
    "overrides",
    [
        EVERY_KIND,
        (*EVERY_KIND, "reversible.merge=mean", "chunking.ff=0", "chunking.loss=0"),
        ("model=reformer", "attention=[full]", "full.query_block=16"),
    ],
    ids=["every kind", "mean, no slices", "full by query block"],
)
def test_reversible_training_with_dropout_has_the_gradients_of_stored_activations(
    build, tokens, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    model = build(*overrides, "dropout=0.1", "attention_dropout=0.1")
    found = losses_and_gradients(model, tokens())

    def stored(sublayers, a, b, tape, states=None):  # type: ignore[no-untyped-def]
        return reversible.reversible_block_naive(sublayers, a, b, states)

    monkeypatch.setattr(block_module, "reversible_block", stored)
    expected = losses_and_gradients(model, tokens())
    for name, value in expected.items():
        assert_close(found[name], value, REBUILT_GRADIENT, name)


def test_streams_start_as_the_embedding_and_are_joined_side_by_side_or_averaged(build, tokens) -> None:
    concat, mean = (build("model=reformer", "attention=[local]", f"reversible.merge={m}") for m in ("concat", "mean"))
    mean.load_state_dict({n: t for n, t in concat.state_dict().items() if not n.startswith("head")}, strict=False)
    both, average = concat.hidden(tokens()), mean.hidden(tokens())
    assert both.shape == (2, 64, 64)
    assert average.shape == (2, 64, 32)
    first, second = both.chunk(2, dim=-1)
    assert_close(average, (first + second) / 2, ROUNDING)

    x = concat.embedding(F.pad(tokens(), (1, 0))[:, :-1]) + concat.positions(64)
    a = b = x
    for block in concat.blocks:
        a = a + block.attention(b)
        b = b + block.feedforward(a)
    assert_close(both, torch.cat([a, b], dim=-1), ROUNDING)


def test_an_ordinary_block_adds_each_branch_to_one_stream(build, tokens) -> None:
    model = build("model=transformer")
    x = model.embedding(F.pad(tokens(), (1, 0))[:, :-1]) + model.positions(64)
    for block in model.blocks:
        x = x + block.attention(x)
        x = x + block.feedforward(x)
    assert_close(model.hidden(tokens()), x, ROUNDING)


def test_replays_hold_the_buckets_of_every_layer(build, tokens) -> None:
    model = build(*EVERY_KIND)
    states = [[RecomputeState(), RecomputeState()] for _ in model.blocks]
    first = model(tokens(), states=states)
    assert [bool(attention.choices) for attention, _ in states] == [False, False, True, False, False]
    held = [[RecomputeState(attention.choices), RecomputeState()] for attention, _ in states]
    assert torch.equal(model(tokens(), states=held), first)
    assert not torch.equal(model(tokens()), first)


@pytest.mark.parametrize("family", ["transformer", "reformer"])
def test_evaluation_drops_nothing_out(build, tokens, family: str) -> None:
    dropping = build(f"model={family}", "attention=[local]", "dropout=0.5", "attention_dropout=0.5")
    plain = build(f"model={family}", "attention=[local]")
    assert not torch.equal(dropping(tokens()), dropping(tokens()))
    dropping.eval()
    state = torch.get_rng_state()
    assert torch.equal(dropping(tokens()), plain(tokens()))
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_with_hashing_follows_the_random_state(build, tokens) -> None:
    model = build("model=reformer", "dropout=0.5").eval()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(model(tokens()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


class Watched(reversible.Tape):
    made: list[weakref.ref[reversible.Tape]] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        Watched.made.append(weakref.ref(self))


def test_the_tape_goes_after_an_error_and_after_a_forward_pass_alone(
    build, tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efftx.models.streams.Tape", Watched)
    monkeypatch.setattr(Watched, "made", [])
    model = build("model=reformer")
    logits = model(tokens())
    assert Watched.made[0]() is not None
    del logits
    gc.collect()
    assert Watched.made[0]() is None

    model.blocks[1].feedforward.core.layers.w2.weight = None
    with pytest.raises(TypeError):
        model(tokens())
    gc.collect()
    assert Watched.made[1]() is None

"""A configuration becomes one model: on any device, from one seed, with the sizes that its shapes say."""

from __future__ import annotations

import pytest
import torch

from efftx.data.dataset import Batch
from efftx.layers.lsh import LSHAttention
from efftx.layers.patterns import Full, Local
from efftx.models.build import build_model, build_on_meta
from efftx.optim.optimizers import OptimizerConfig, make_optimizer
from efftx.training.step import clip_gradients, loss_of, set_learning_rate

FORMS = {
    "transformer": ("model=transformer",),
    "transformer by query block": ("model=transformer", "full.query_block=16", "share_qk=true", "attention_bias=true"),
    "transformer, tied": ("model=transformer", "tie_embeddings=true", "positions.kind=sinusoidal", "chunking.loss=16"),
    "transformer, local": ("model=transformer", "attention=[local,full]", "positions.kind=learned", "dropout=0.1"),
    "sparse transformer": ("model=sparse_transformer", "dropout=0.1", "init.zero_logits=false", "d_qk=8"),
    "reformer": ("model=reformer", "dropout=0.1", "attention_dropout=0.1"),
    "reformer, later form": ("model=reformer", "lsh.attend_across_buckets=true", "lsh.allow_duplicates=true"),
    "reformer, mixed": ("model=reformer", "attention=[local,local,lsh,local]", "n_layers=4", "positions.kind=none"),
    "reformer, mean and tied": ("model=reformer", "reversible.merge=mean", "tie_embeddings=true"),
    "lsh, not reversible": ("model=reformer", "reversible.enabled=false", "data.length=50", "chunking.ff=0"),
}


PAIRS = {
    "scaling": ("model=scaling",),
    "scaling, dense": ("model=scaling", "sparse_ff.N=0", "sparse_qkv.S=0"),
    "scaling, sparse query": ("model=scaling", "sparse_qkv.cross=query", "reversible.enabled=true"),
    "terraformer": ("model=terraformer", "dropout=0.1", "positions.kind=digits"),
    "terraformer, full": ("model=terraformer", "attention=[full]", "reversible.encoder=merged"),
}
"""Encoder-decoders: span corruption over bytes."""


@pytest.mark.parametrize("name", PAIRS)
def test_a_whole_step_of_an_encoder_decoder_runs_on_the_meta_device(configure, name: str) -> None:
    config = configure("data=stdlib", *PAIRS[name])
    model = build_on_meta(config, 359)
    targets = config.target_length
    with torch.device("meta"):
        batch = Batch(
            torch.empty(2, targets, dtype=torch.int64),
            torch.empty(2, targets),
            torch.empty(2, config.data.length, dtype=torch.int64),
        )
    update = make_optimizer(OptimizerConfig(name="adafactor"), model.named_parameters())
    set_learning_rate(update, 1e-3)
    loss = loss_of(model, batch)
    loss.backward()
    clip_gradients(list(model.parameters()), 1.0)
    update.step()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.device.type == "meta"
        assert parameter.grad is not None, f"{parameter_name} has no gradient"


@pytest.mark.parametrize(("name", "optimizer"), [*((name, "adam") for name in FORMS), ("reformer", "adafactor")])
def test_a_whole_training_step_runs_on_the_meta_device(configure, name: str, optimizer: str) -> None:
    config = configure(*FORMS[name])
    model = build_on_meta(config, 23)
    length = config.data.length
    batch = Batch(torch.empty(2, length, dtype=torch.int64, device="meta"), torch.empty(2, length, device="meta"))
    update = make_optimizer(OptimizerConfig(name=optimizer), model.named_parameters())
    set_learning_rate(update, 1e-3)
    loss = loss_of(model, batch)
    loss.backward()
    norm = clip_gradients(list(model.parameters()), 1.0)
    update.step()
    assert loss.shape == norm.shape == ()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.device.type == "meta"
        assert parameter.grad is not None, f"{parameter_name} has no gradient"


@pytest.mark.parametrize("name", FORMS)
def test_every_parameter_learns(configure, tokens, name: str) -> None:
    config = configure(*FORMS[name])
    model = build_model(config, 23, torch.device("cpu"))
    given = tokens(config.data.length)
    loss_of(model, Batch(given, torch.ones(given.shape))).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(), f"{parameter_name} has the gradient 0"


def test_kinds_of_attention_cycle_over_the_layers(configure) -> None:
    model = build_on_meta(configure("model=reformer", "attention=[local,local,lsh,full]", "n_layers=6"), 23)
    cores = [block.attention.core for block in model.blocks]
    kinds = [LSHAttention if isinstance(core, LSHAttention) else type(core.pattern) for core in cores]
    assert kinds == [Local, Local, LSHAttention, Full, Local, Local]


@pytest.mark.parametrize("family", ["transformer", "reformer"])
def test_one_seed_is_one_model_bit_for_bit(configure, family: str) -> None:
    config = configure(f"model={family}")
    cpu = torch.device("cpu")
    first = build_model(config, 23, cpu)
    torch.rand(3)
    second = build_model(config, 23, cpu)
    config.seed += 1
    third = build_model(config, 23, cpu)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name)), name
    assert not torch.equal(first.embedding.weight, third.embedding.weight)


@pytest.mark.parametrize("family", ["transformer", "reformer"])
def test_tied_embeddings_are_one_tensor_that_one_gradient_reaches_from_both_ends(
    configure, tokens, family: str
) -> None:
    merge = ("reversible.merge=mean",) if family == "reformer" else ()
    config = configure(f"model={family}", "tie_embeddings=true", *merge)
    model = build_model(config, 23, torch.device("cpu"), torch.float64)
    assert model.head.linear.weight is model.embedding.weight
    assert "head.linear.weight" not in dict(model.named_parameters())
    config.tie_embeddings = False
    untied = build_model(config, 23, torch.device("cpu"), torch.float64)
    untied.load_state_dict(model.state_dict())
    assert untied.head.linear.weight is not untied.embedding.weight
    for each in (model, untied):
        torch.manual_seed(0)
        loss_of(each, Batch(tokens(), torch.ones(2, 64))).backward()
    torch.testing.assert_close(
        model.embedding.weight.grad, untied.embedding.weight.grad + untied.head.linear.weight.grad
    )


def size(config, vocab_size: int) -> int:  # type: ignore[no-untyped-def]
    return sum(p.numel() for p in build_on_meta(config, vocab_size).parameters())


def test_concatenated_streams_double_the_heads_width_and_the_mean_keeps_the_ordinary_size(configure) -> None:
    words = ("attention=[full]", "share_qk=true")
    ordinary = configure("model=transformer", *words)
    concat, mean = (configure("model=reformer", *words, f"reversible.merge={merge}") for merge in ("concat", "mean"))
    assert build_on_meta(concat, 23).head.linear.in_features == 2 * 32
    assert build_on_meta(mean, 23).head.linear.in_features == 32
    assert size(mean, 23) == size(ordinary, 23)
    assert size(concat, 23) == size(ordinary, 23) + 2 * 32 + 32 * 23


# d_model 1024, d_ff 4096, 8 heads, axial grid 128 x 512 of widths 256 + 768, 256 bytes and two signs.
NORMS = 2 * 2 * 1024
FEED_FORWARD = 1024 * 4096 + 4096 + 4096 * 1024 + 1024
FEED_FORWARD_OF_2048 = 1024 * 2048 + 2048 + 2048 * 1024 + 1024
EMBEDDINGS = 258 * 1024 + 128 * 256 + 512 * 768
HEAD = 2 * 1024 + 1024 * 258 + 258
HEAD_OF_BOTH_STREAMS = 2 * 2048 + 2048 * 258 + 258


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("model=transformer",), 3 * (4 * 1024 * 512 + NORMS + FEED_FORWARD) + EMBEDDINGS + HEAD),
        (("model=reformer",), 3 * (3 * 1024 * 512 + NORMS + FEED_FORWARD) + EMBEDDINGS + HEAD_OF_BOTH_STREAMS),
        (
            ("model=reformer", "preset=reformer/enwik8_2020"),
            # 9 local layers of queries and keys apart, 3 of hash attention
            (9 * 4 + 3 * 3) * 1024 * 1024 + 12 * (NORMS + FEED_FORWARD_OF_2048) + EMBEDDINGS + HEAD_OF_BOTH_STREAMS,
        ),
    ],
    ids=["transformer", "reformer", "reformer of 2020"],
)
def test_the_papers_sizes_have_the_parameters_that_their_shapes_say(
    configure, overrides: tuple[str, ...], expected: int
) -> None:
    config = configure(*overrides, "data=enwik8", "data.length=65536", size="paper")
    assert size(config, 258) == expected


def test_the_ablations_parameter_counts_in_figures() -> None:
    assert 3 * (4 * 1024 * 512 + NORMS + FEED_FORWARD) + EMBEDDINGS + HEAD == 32_441_602
    assert 3 * (3 * 1024 * 512 + NORMS + FEED_FORWARD) + EMBEDDINGS + HEAD_OF_BOTH_STREAMS == 31_134_978


@pytest.mark.parametrize("family", ["transformer", "reformer"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_embedding_starts_at_one_over_the_root_of_its_width_and_another_at_one(
    configure, family: str, tied: bool
) -> None:
    words = (f"tie_embeddings={str(tied).lower()}", *(("reversible.merge=mean",) if family == "reformer" else ()))
    config = configure(f"model={family}", *words)
    weight = build_model(config, 2000, torch.device("cpu")).embedding.weight
    expected = config.d_model**-0.5 if tied else 1.0
    assert weight.std().item() == pytest.approx(expected, rel=0.02)
    assert abs(weight.mean().item()) < 0.02 * expected

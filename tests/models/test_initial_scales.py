"""The scales at which a model starts: today's by default, bit for bit, and those that the config names."""

from __future__ import annotations

import math

import pytest
import torch

from efftx.config.compose import compose
from efftx.errors import UserError
from efftx.models.block import TOKENS, Block, Branch, scale_residual
from efftx.models.build import Model, build_model

SMOKE = ("data=stdlib", "size=smoke")


def built(*words: str) -> Model:
    return build_model(compose([*SMOKE, *words]), 500, torch.device("cpu"))


def deviation(model: Model, name: str) -> float:
    return float(model.get_parameter(name).detach().std())


def test_tables_start_at_the_deviations_that_are_given_and_nothing_else_changes() -> None:
    words = ("model=transformer", "d_model=64", "n_heads=2", "positions.kind=learned")
    plain, scaled = built(*words), built(*words, "init.embedding_std=0.02", "init.position_std=0.01")
    assert deviation(plain, "embedding.weight") == pytest.approx(1, abs=0.02)
    assert deviation(plain, "positions.table") == pytest.approx(1, abs=0.05)
    for name, weight in scaled.named_parameters():
        factor = {"embedding.weight": 0.02, "positions.table": 0.01}.get(name, 1.0)
        torch.testing.assert_close(weight, factor * plain.get_parameter(name), rtol=1e-6, atol=0)


def test_axial_tables_take_the_deviation_of_positions() -> None:
    words = ("model=transformer", "positions.kind=axial", "positions.axial_shape=[8,8]", "positions.axial_dims=[16,16]")
    plain, scaled = built(*words), built(*words, "init.position_std=0.02")
    for i in range(2):
        name = f"positions.tables.{i}"
        torch.testing.assert_close(scaled.get_parameter(name), 0.02 * plain.get_parameter(name))


def test_a_tied_table_starts_at_its_width_unless_a_deviation_is_given() -> None:
    words = ("model=transformer", "d_model=64", "n_heads=2", "positions.kind=none", "tie_embeddings=true")
    assert deviation(built(*words), "embedding.weight") == pytest.approx(1 / 8, rel=0.03)
    assert deviation(built(*words, "init.embedding_std=0.5"), "embedding.weight") == pytest.approx(0.5, rel=0.03)


WRITERS = {
    "model=transformer n_layers=3": (
        6,
        ["blocks.0.attention.core.project.o.weight", "blocks.2.feedforward.core.layers.w2.weight"],
    ),
    "model=transformer n_layers=2 sparse_ff.N=4 sru.n_layers=1": (
        4,
        ["blocks.1.feedforward.core.w2", "blocks.0.feedforward.beside.out.weight"],
    ),
    "model=transformer n_layers=2 sparse_qkv.S=4": (4, ["blocks.0.attention.core.project.v.kernel"]),
    "model=transformer n_layers=2 sparse_qkv.S=4 sparse_qkv.output=multiplicative": (
        4,
        ["blocks.0.attention.core.project.o.multiplicative.proj"],
    ),
    "model=transformer n_layers=2 sparse_qkv.S=4 sparse_qkv.output=dense": (
        4,
        ["blocks.0.attention.core.project.o.dense.weight"],
    ),
    "model=transformer n_layers=2 sparse_qkv.S=4 sparse_qkv.variant=modular": (
        4,
        ["blocks.0.attention.core.project.v.weight"],
    ),
    "model=transformer n_layers=2 sparse_qkv.S=4 sparse_qkv.variant=low_rank": (
        4,
        ["blocks.0.attention.core.project.v.up.weight"],
    ),
    "model=scaling n_layers=1 n_encoder_layers=2 sparse_qkv.S=0 sparse_ff.N=0": (
        3,
        [
            "blocks.0.attention.core.project.o.weight",
            "blocks.0.cross_attention.core.query.o.weight",
            "blocks.0.feedforward.core.layers.w2.weight",
        ],
    ),
    "model=scaling n_layers=1 sparse_qkv.cross=query": (3, ["blocks.0.cross_attention.core.v.weight"]),
    "model=reformer n_layers=2": (4, ["blocks.1.attention.core.project.o.weight"]),
}


@pytest.mark.parametrize("words", WRITERS)
def test_matrices_that_write_to_the_stream_are_smaller_by_the_root_of_its_branches(words: str) -> None:
    plain, scaled = built(*words.split()), built(*words.split(), "init.residual=depth")
    n_branches, among = WRITERS[words]
    assert sum(isinstance(m, Branch) for m in scaled.blocks.modules()) == n_branches
    changed = {n for n, p in scaled.named_parameters() if not torch.equal(p, plain.get_parameter(n))}
    assert changed >= set(among)
    for name in changed:
        n = n_branches if name.startswith("blocks.") else sum(isinstance(m, Branch) for m in encoder(scaled).modules())
        torch.testing.assert_close(scaled.get_parameter(name), plain.get_parameter(name) / math.sqrt(n))
    branches = [m for m in scaled.modules() if isinstance(m, Branch)]
    owners = {name.rsplit(".core.", 1)[0].rsplit(".beside.", 1)[0] for name in changed}
    assert len(owners) == len(branches), "one matrix at least of every branch"


def encoder(model: Model) -> torch.nn.Module:
    return model.encoder_blocks  # type: ignore[union-attr,return-value]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("init.residual=dept",), "init.residual=dept is not known"),
        (("init.embedding_std=0",), "init.embedding_std=0 must be above 0"),
        (("positions.kind=none", "init.position_std=0.02"), "'init.position_std' would change nothing"),
        (("sparse_ff.N=4", "sparse_ff.controller=token", "sparse_ff.rank=4"), "'sparse_ff.rank' would change nothing"),
        (
            ("sparse_ff.N=4", "sparse_ff.controller=frozen", "sparse_ff.quant_prob=1"),
            "'sparse_ff.quant_prob' would change nothing",
        ),
        (
            ("sparse_ff.N=4", "sparse_ff.controller=token", "sparse_ff.token_bias=1"),
            "'sparse_ff.token_bias' would change nothing",
        ),
        (("sparse_ff.N=4", "sparse_ff.token_bias=-1"), "sparse_ff.token_bias=-1 must not be negative"),
        (("sparse_ff.N=4", "sparse_ff.controller=token", "compile=true"), "chosen by the token ends the process"),
        (("sparse_ff.N=4", "sparse_ff.token_bias=4", "compile=true"), "chosen by the token ends the process"),
        (("sparse_ff.N=4", "sparse_ff.controller=orakel"), "sparse_ff.controller=orakel is not known"),
        (("sparse_ff.N=4", "sparse_ff.form=code2"), "sparse_ff.form=code2 is not known"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError) as error:
        compose([*SMOKE, "model=transformer", *words])
    assert says in error.value.message


def test_a_branch_that_does_not_say_what_it_writes_with_cannot_be_scaled() -> None:
    block = Block(feedforward=Branch(8, torch.nn.Tanh(), 0.0, reads=TOKENS))
    with pytest.raises(ValueError, match="Tanh does not say by `output_matrices` what it writes with"):
        scale_residual([block])

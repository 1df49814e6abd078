"""Reformer models of transformers have its logits here, and go back as they came.

`tests/golden/transformers_reformer` is a folder that transformers 5.24 saved of a model drawn at random, with logits in
float64: of 32 tokens with the buckets given, and of 8, which its hash attention attends to in full.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from efftx.config.compose import compose
from efftx.errors import UserError
from efftx.models import decoder
from efftx.models.build import build_model
from efftx.models.conversion import load_weights
from efftx.models.transformers_weights import config_for, from_transformers, overrides_of, to_transformers
from efftx.ops.lsh_hashing import auto_buckets
from efftx.ops.recompute_state import RecomputeState
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "transformers_reformer"
DATA = ("data=duplicate", "data.n_symbols=39")
FLOAT32 = 1e-6
"""The stored logits and weights are rounded to it."""


def theirs(**changed: Any) -> dict[str, Any]:
    return {**json.loads((FOLDER / "config.json").read_text()), **changed}


def arrays() -> dict[str, Tensor]:
    return dict(load_file(FOLDER / "model.safetensors"))


def make_rows_short(model: decoder.Decoder) -> None:
    """Hash attention goes by the rows of the model, not by those at hand: now they are short, and attend in full."""
    for block in model.blocks:
        if hasattr(block.attention.core, "length"):
            block.attention.core.length = 8


@pytest.fixture
def model() -> decoder.Decoder:
    config = compose([*overrides_of(theirs()), *DATA])
    made = build_model(config, 40, torch.device("cpu"), torch.float64).eval()
    load_weights(made, {name: w.double() for name, w in from_transformers(arrays()).items()}, None)
    assert isinstance(made, decoder.Decoder)
    return made


@pytest.fixture
def fed_alike(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Tensor]:
    """Their model reads token t at place t."""
    monkeypatch.setattr(decoder, "shift_right", lambda tokens_BL: tokens_BL)
    return lambda tokens: tokens


def test_local_and_hashed_layers_have_their_logits_with_their_buckets(model, fed_alike) -> None:
    with np.load(FOLDER / "outputs.npz") as stored:
        tokens, buckets = (torch.from_numpy(stored[name]).long() for name in ("tokens", "buckets"))
        logits, of_8 = (torch.from_numpy(stored[name]).double() for name in ("logits", "logits_of_8"))
    states = [[RecomputeState(), RecomputeState()], [RecomputeState({"buckets": buckets}), RecomputeState()]]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, states=states), logits, atol=FLOAT32, rtol=FLOAT32)
        make_rows_short(model)
        torch.testing.assert_close(model(tokens[:, :8]), of_8, atol=FLOAT32, rtol=FLOAT32)


def test_weights_and_configuration_go_back_as_they_came() -> None:
    back = to_transformers(from_transformers(arrays()))
    here = arrays()
    assert back.keys() == here.keys()
    for name in back:
        torch.testing.assert_close(back[name], here[name], rtol=0, atol=0)
    config = compose([*overrides_of(theirs()), *DATA])
    assert compose([*overrides_of(config_for(config, 40)), *DATA]) == config


def test_of_two_biases_that_differ_the_one_that_is_used_counts() -> None:
    """A file of an earlier version of the library, which saved its one tensor twice, may have been changed."""
    used = torch.randn(40)
    assert torch.equal(from_transformers({**arrays(), "lm_head.decoder.bias": used})["head.linear.bias"], used)
    once = {name: array for name, array in arrays().items() if name != "lm_head.decoder.bias"}
    assert torch.equal(from_transformers(once)["head.linear.bias"], arrays()["lm_head.bias"])


def test_the_first_entries_of_their_vocabulary_may_be_left_out() -> None:
    whole, cut = from_transformers(arrays()), from_transformers(arrays(), 2)
    for name in ("embedding.weight", "head.linear.weight", "head.linear.bias"):
        assert torch.equal(cut[name], whole[name][2:])
    assert torch.equal(cut["head.norm.bias"], whole["head.norm.bias"])


def test_learned_positions_and_factors_of_the_buckets_are_read() -> None:
    words = overrides_of(theirs(axial_pos_embds=False, num_buckets=[2, 4], attn_layers=["lsh", "lsh"]))
    assert {"positions.kind=learned", "positions.max_len=4096", "lsh.n_buckets=[2,4]", "attention=[lsh]"} <= set(words)


@pytest.mark.parametrize(
    ("length", "chunk_len", "buckets"), [(96, 8, "[16]"), (64, 8, "[16]"), (2048, 4, "[32,32]"), (4, 8, "[2]")]
)
def test_buckets_that_are_null_are_those_that_transformers_sets_for_the_longest_rows(
    length: int, chunk_len: int, buckets: str
) -> None:
    """`_set_num_buckets` of transformers 5.23: the power of 2 below 2 L // chunk, in two factors above a limit."""
    changed = {"lsh_attn_chunk_length": chunk_len, "axial_pos_embds": False, "max_position_embeddings": length}
    words = overrides_of(theirs(num_buckets=None, **changed))
    assert f"lsh.n_buckets={buckets}" in words
    assert f"data.length={length}" in words


def test_a_default_that_their_config_leaves_out_counts_for_its_buckets() -> None:
    without = {key: value for key, value in theirs(num_buckets=None).items() if key != "max_position_embeddings"}
    words = overrides_of({**without, "axial_pos_shape": [8, 16], "lsh_attn_chunk_length": 8})
    assert "lsh.n_buckets=[32]" in words, "the limit is of 4,096 positions, not of the 128 of the table"


def test_buckets_of_an_export_are_written_out() -> None:
    config = compose([*overrides_of(theirs()), *DATA])
    automatic = replace(config, lsh=replace(config.lsh, n_buckets=(), chunk_len=8))
    assert config_for(automatic, 40)["num_buckets"] == auto_buckets(config.data.length, 8)[0]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model_type": "bert"}, "model_type=bert"),
        ({"is_decoder": False}, "is_decoder is False"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"lsh_num_chunks_before": 2}, "lsh_num_chunks_before is 2"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"attn_layers": []}, r"attn_layers is \[\]"),
        ({"attn_layers": "lsh"}, "attn_layers is lsh"),
        ({"num_hashes": None}, "without num_hashes"),
    ],
)
def test_a_model_that_is_not_built_here_is_refused_by_its_key(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        overrides_of(theirs(**changed))


NEEDED = (
    *("attn_layers", "hidden_size", "feed_forward_size", "num_attention_heads", "attention_head_size"),
    *("layer_norm_eps", "num_hashes", "lsh_attn_chunk_length", "local_attn_chunk_length"),
    *("axial_pos_shape", "axial_pos_embds_dim"),
)


@pytest.mark.parametrize("key", NEEDED)
def test_a_configuration_without_a_key_is_refused_by_its_name(key: str) -> None:
    with pytest.raises(UserError, match=f"without {key}"):
        overrides_of({name: value for name, value in theirs().items() if name != key})


def test_learned_positions_without_their_number_are_refused() -> None:
    short = {name: value for name, value in theirs().items() if name != "max_position_embeddings"}
    with pytest.raises(UserError, match="without max_position_embeddings"):
        overrides_of({**short, "axial_pos_embds": False})


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("lsh.hashing=random", "lsh.hashing"),
        ("lsh.allow_duplicates=false", "allow_duplicates"),
        ("reversible.merge=mean", "reversible"),
        ("attention=[full]", "attention"),
        ("positions.kind=sinusoidal", "positions"),
    ],
)
def test_a_model_that_theirs_cannot_be_is_not_exported(word: str, named: str) -> None:
    dropped = {"attention=[full]": ("lsh.", "local."), "positions.kind=sinusoidal": ("positions.",)}.get(word, ())
    words = [told for told in overrides_of(theirs()) if not told.startswith(dropped or ("-",))]
    key = word.partition("=")[0]
    config = compose([*(told for told in words if told.partition("=")[0] != key), *DATA, word])
    with pytest.raises(UserError) as refused:
        config_for(config, 40)
    assert named in refused.value.hint


def test_all_that_stands_in_the_way_of_an_export_is_told_at_once() -> None:
    dropped = ("lsh.al", "activation")
    words = [told for told in overrides_of(theirs()) if not told.startswith(dropped)]
    changed = ["lsh.allow_duplicates=false", "activation=gelu_sigmoid"]
    with pytest.raises(UserError) as refused:
        config_for(compose([*words, *DATA, *changed]), 40)
    assert "activation=relu lsh.allow_duplicates=true can" in refused.value.hint


@pytest.mark.parametrize(("full_below", "goes_out"), [(0, True), (4, True), (31, True), (32, False), (1024, False)])
def test_a_model_that_never_hashed_its_rows_is_not_exported(full_below: int, goes_out: bool) -> None:
    config = compose([*overrides_of(theirs()), *DATA])
    config = replace(config, lsh=replace(config.lsh, full_below=full_below), data=replace(config.data, length=32))
    if goes_out:
        assert config_for(config, 40)["lsh_attn_chunk_length"] == config.lsh.chunk_len
    else:
        with pytest.raises(UserError) as refused:
            config_for(config, 40)
        assert "lsh.full_below=0" in refused.value.hint


def test_a_model_of_hash_attention_alone_goes_out() -> None:
    words = [told for told in overrides_of(theirs()) if not told.startswith(("local.", "share_qk", "attention="))]
    shared = compose([*words, *DATA, "attention=[lsh]"])
    assert config_for(shared, 40)["attn_layers"] == ["lsh"] * shared.n_layers


def test_the_model_of_the_library_itself_has_the_same_logits(model, fed_alike, tmp_path: Path) -> None:
    reformer = pytest.importorskip("transformers.models.reformer.modeling_reformer")
    theirs_now = reformer.ReformerModelWithLMHead.from_pretrained(FOLDER).double().eval()
    for layer in theirs_now.reformer.encoder.layers:
        if hasattr(layer.attention.self_attention, "hash_seed"):
            layer.attention.self_attention.chunk_length = 32  # as if every row were short
    make_rows_short(model)
    tokens = torch.randint(1, 40, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = theirs_now(tokens).logits
        if theirs_now.lm_head.decoder.bias is None:  # transformers 5.23 holds the bias and does not add it
            logits = logits + theirs_now.lm_head.bias
        torch.testing.assert_close(model(tokens), logits, atol=FLOAT32, rtol=FLOAT32)

"""Weights carried between separate and shared queries and keys."""

from __future__ import annotations

import pytest
import torch

from efftx.errors import UserError
from efftx.models.conversion import CONVERSIONS, load_weights
from tests.tolerances import ROUNDING, assert_close

SHARED = ("model=transformer", "share_qk=true", "attention_bias=true")
SEPARATE = ("model=transformer", "share_qk=false", "attention_bias=true")


def weights(model):  # type: ignore[no-untyped-def]
    return dict(model.named_parameters(remove_duplicate=False))


def test_the_query_becomes_the_shared_projection_and_the_key_is_dropped(build) -> None:
    separate, shared = build(*SEPARATE, "seed=1"), build(*SHARED)
    load_weights(shared, weights(separate), "q_to_qk")
    for name, parameter in shared.named_parameters():
        assert torch.equal(parameter, separate.get_parameter(name.replace(".qk.", ".q."))), name


def test_the_shared_projection_becomes_query_and_key(build) -> None:
    shared, separate = build(*SHARED, "seed=1"), build(*SEPARATE)
    load_weights(separate, weights(shared), "qk_to_q_and_k")
    for name, parameter in separate.named_parameters():
        assert torch.equal(parameter, shared.get_parameter(name.replace(".q.", ".qk.").replace(".k.", ".qk."))), name
    with torch.no_grad():
        separate.blocks[0].attention.core.project.q.weight.zero_()
    assert separate.blocks[0].attention.core.project.k.weight.any()


def test_carried_there_and_back_a_model_gives_its_own_logits(build, tokens) -> None:
    shared, separate, back = build(*SHARED, "seed=1"), build(*SEPARATE), build(*SHARED, "seed=2")
    load_weights(separate, weights(shared), "qk_to_q_and_k")
    load_weights(back, weights(separate), "q_to_qk")
    assert_close(back(tokens()), shared(tokens()), ROUNDING)


def test_a_full_models_weights_serve_hashing_without_a_mapping(build) -> None:
    full, hashing = build("model=reformer", "attention=[full]", "seed=1"), build("model=reformer")
    load_weights(hashing, weights(full), None)
    for name, parameter in hashing.named_parameters():
        assert torch.equal(parameter, full.get_parameter(name)), name


def test_a_model_whose_attention_is_left_out_takes_all_other_weights(build, tokens) -> None:
    whole, without = build(*SHARED, "seed=1"), build(*SHARED, "attention=[full,identity]")
    load_weights(without, weights(whole), "without_attention")
    for name, parameter in without.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name
    left_out = set(weights(whole)) - set(weights(without))
    assert {name.rpartition(".core.project.")[0] for name in left_out} == {"blocks.1.attention"}
    with torch.no_grad():
        for matrix in ("weight", "bias"):
            whole.blocks[1].attention.core.project.o.get_parameter(matrix).zero_()
    assert_close(without(tokens()), whole(tokens()), ROUNDING)


def test_what_does_not_fit_is_refused(build) -> None:
    shared, separate = build(*SHARED), build(*SEPARATE)
    with pytest.raises(UserError, match=r"Only the model has the weight '.*\.k\.bias'"):
        load_weights(separate, weights(shared), None)
    with pytest.raises(UserError, match="Only the checkpoint has") as found:
        load_weights(build(*SHARED, "n_layers=1"), weights(shared), None)
    assert found.value.exit_code == 2
    with pytest.raises(UserError, match="has shape"):
        load_weights(build(*SHARED, "d_ff=256"), weights(shared), None)
    with pytest.raises(UserError) as unknown:
        load_weights(shared, weights(shared), "q_to_kq")
    assert unknown.value.hint == "Did you mean 'q_to_qk'?"
    assert set(CONVERSIONS) == {"q_to_qk", "qk_to_q_and_k", "without_attention"}

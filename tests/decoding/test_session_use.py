"""How a session is used: what it refuses, what it needs of memory, and a model that is trained again."""

from __future__ import annotations

import pytest
import torch

from efftx.config.compose import compose
from efftx.decoding.session import CachedSession, PreparedModel
from efftx.errors import UserError
from efftx.layers.cache import SlotCache
from efftx.models.build import build_model
from tests.tolerances import ROUNDING, assert_close

from .models import DECODERS, INPUTS, PAIRS, check_against_full_pass, full_pass, model_of, random_tokens


@pytest.mark.parametrize(
    ("prompts", "kind"), [([[1] * 40], "too_long"), ([[23]], "bad_token"), ([[-1]], "bad_token")], ids=str
)
def test_a_prompt_that_does_not_fit_is_refused(prompts: list[list[int]], kind: str) -> None:
    session = CachedSession(PreparedModel(model_of(DECODERS["transformer"], "stdlib")), 40, 1)
    with pytest.raises(UserError) as error:
        session.start(prompts)
    assert error.value.kind == kind


def test_a_full_row_takes_no_further_token() -> None:
    session = CachedSession(PreparedModel(model_of(DECODERS["transformer"], "stdlib")), 3, 1)
    session.start([[1]])
    session.step(torch.tensor([2]))
    with pytest.raises(UserError, match="3 tokens already"):
        session.step(torch.tensor([3]))


def test_more_tokens_than_the_model_has_positions_are_refused() -> None:
    with pytest.raises(UserError, match="64 tokens, and 65"):
        CachedSession(PreparedModel(model_of(DECODERS["transformer"], "stdlib")), 65, 1)


def test_caches_beyond_the_memory_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("efftx.decoding.session.free_memory", lambda device: asked.append(device) or 1000)
    with pytest.raises(UserError, match="memory are free") as error:
        CachedSession(PreparedModel(model_of(DECODERS["transformer"], "stdlib")), 40, 8)
    assert error.value.kind == "too_large"
    assert asked == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("no positions", 0),
        ("narrow queries, positions before the shift", 20 * 32 * 8),
        ("sinusoidal, tied, wide heads", 20 * 32 * 8),
        ("transformer", 20 * 32 * 8),  # axial
    ],
)
def test_the_table_of_positions_is_counted_where_one_is_made(
    name: str, table: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = PreparedModel(model_of(DECODERS[name], "stdlib"))
    needed = CachedSession(prepared, 20, 3).cache_bytes() + table
    monkeypatch.setattr("efftx.decoding.session.free_memory", lambda device: needed)
    CachedSession(prepared, 20, 3)
    monkeypatch.setattr("efftx.decoding.session.free_memory", lambda device: needed - 1)
    with pytest.raises(UserError, match="memory are free"):
        CachedSession(prepared, 20, 3)


@pytest.mark.parametrize("name", ["transformer", "sparse QKV", "everything"])
def test_a_model_goes_on_training_after_it_was_prepared(name: str) -> None:
    model = model_of(DECODERS[name], "stdlib")
    with torch.inference_mode():
        prepared = PreparedModel(model)
    model.train()
    model(random_tokens(2, 9), losses=True)[0].mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="prepare it again"):
        CachedSession(prepared, 20, 1)
    model.eval()
    with pytest.raises(RuntimeError, match="prepare it again"):
        CachedSession(prepared, 20, 1)
    full = full_pass(model, (5,), 8)
    check_against_full_pass(model, full, (5,), 8)


def test_a_model_that_is_made_in_inference_mode_decodes() -> None:
    config = compose(["model=transformer", "size=smoke", "data=stdlib", "positions.kind=learned"])
    with torch.inference_mode():
        model = build_model(config, 256, torch.device("cpu")).eval()
    expected = CachedSession(PreparedModel(build_model(config, 256, torch.device("cpu")).eval()), 20, 1).start([[3, 4]])
    assert torch.equal(CachedSession(PreparedModel(model), 20, 1).start([[3, 4]]), expected)
    with torch.inference_mode():
        assert torch.equal(CachedSession(PreparedModel(model), 20, 1).start([[3, 4]]), expected)


def test_a_model_may_be_prepared_twice() -> None:
    model = model_of(DECODERS["transformer"], "stdlib")
    prepared = [PreparedModel(model), PreparedModel(model, quantization="int8"), PreparedModel(model)]
    first, _, last = (CachedSession(one, 20, 1).start([[3, 4]]) for one in prepared)
    assert torch.equal(first, last)


@pytest.mark.parametrize("change", ["load_state_dict", "to"])
def test_weights_that_were_laid_out_and_then_changed_are_not_decoded_with(change: str) -> None:
    model = model_of(DECODERS["sparse QKV"], "stdlib")
    prepared = PreparedModel(model)
    CachedSession(prepared, 20, 1)
    if change == "to":
        model.float()
    else:
        model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="prepare it again"):
        CachedSession(prepared, 20, 1)


def test_a_session_wants_the_models_inputs_one_a_row() -> None:
    decoder = PreparedModel(model_of(DECODERS["transformer"], "stdlib"))
    pair = PreparedModel(model_of((*PAIRS["cross-attention"], "positions.max_len=64"), "stdlib"))
    for prepared, inputs in ((decoder, INPUTS), (pair, None), (pair, INPUTS[:1]), (pair, INPUTS[:2])):
        with pytest.raises(ValueError, match="inputs"):
            CachedSession(prepared, 20, 3, inputs)
    for capacity, batch in ((0, 1), (20, 0)):
        with pytest.raises(ValueError, match="at least one row"):
            CachedSession(decoder, capacity, batch)


def test_a_step_and_a_new_order_want_one_number_a_row() -> None:
    session = CachedSession(PreparedModel(model_of(DECODERS["transformer"], "stdlib")), 20, 2)
    for call in (session.step, session.reorder):
        with pytest.raises(RuntimeError, match="begins with"):
            call(torch.tensor([1, 1]))
    session.start([[1], [2]])
    for call in (session.step, session.reorder):
        for wrong in (torch.tensor([1]), torch.tensor([1, 1, 1]), torch.tensor([[1, 1]])):
            with pytest.raises(ValueError, match="2 rows"):
                call(wrong)
    with pytest.raises(ValueError, match="2 rows"):
        session.start([[1]])


@pytest.mark.parametrize("name", ["sinusoidal, tied, wide heads", "everything", *PAIRS])
def test_the_bytes_of_keys_and_values_are_told_beforehand(name: str) -> None:
    overrides = DECODERS[name] if name in DECODERS else (*PAIRS[name], "positions.max_len=64")
    inputs = None if name in DECODERS else INPUTS
    session = CachedSession(PreparedModel(model_of(overrides, "stdlib")), 20, 3, inputs)
    told = session.cache_bytes()
    session.start([[1], [2], []])
    cores = [cache.core for kept in session._caches for cache in kept if cache.core is not None]
    kept = [core.kv if hasattr(core, "kv") else core for core in cores]
    names = ("k_BHTd", "v_BHTv", "k_BHEd", "v_BHEd")
    slots = [t for one in kept if isinstance(one, SlotCache) for t in one.tensors()]
    arrays = [getattr(one, name) for one in kept for name in names if hasattr(one, name)]
    assert told == sum(t.nbytes for t in (*slots, *arrays))


@pytest.mark.parametrize("name", ["cross-attention", "Terraformer"])
def test_an_input_that_all_rows_have_is_encoded_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of((*PAIRS[name], "positions.max_len=64"), "stdlib")
    prepared, encoded, encode = PreparedModel(model), [], model.encode
    monkeypatch.setattr(model, "encode", lambda inputs: encoded.append(len(inputs)) or encode(inputs))
    alone, beam, others = (CachedSession(prepared, 20, len(rows), INPUTS[rows]) for rows in ([0], [0, 0], [0, 1, 2]))
    (one,) = alone.start([[4, 5]])
    assert_close(beam.start([[4, 5]] * 2), one.expand(2, -1), ROUNDING, "a beam of two")
    assert_close(beam.step(torch.tensor([6, 6])), alone.step(torch.tensor([6])).expand(2, -1), ROUNDING, "and on")
    others.start([[4, 5]] * 3)
    assert encoded == [1, 1, 3]

"""Decoding with caches gives what the full pass gives, for every mechanism, batch and shape of prompt."""

from __future__ import annotations

import pytest
import torch

from efftx.decoding.session import CachedSession, PreparedModel
from tests.tolerances import ROUNDING, assert_close

from .models import DECODERS, INPUTS, PAIRS, check_against_full_pass, full_pass, model_of


@pytest.mark.parametrize("lengths", [(5,), (0,), (9, 9), (3, 11, 0)], ids=str)
@pytest.mark.parametrize("name", DECODERS)
def test_step_by_step_is_the_full_pass(name: str, lengths: tuple[int, ...]) -> None:
    model = model_of(DECODERS[name], "stdlib")
    full = full_pass(model, lengths, 20)
    check_against_full_pass(model, full, lengths, 20)


@pytest.mark.parametrize("lengths", [(5,), (0,), (0, 0, 0), (2, 0, 4)], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_step_by_step_is_the_full_pass_behind_an_encoder(name: str, lengths: tuple[int, ...]) -> None:
    model = model_of((*PAIRS[name], "positions.max_len=64"), "stdlib")
    inputs = INPUTS[: len(lengths)]
    full = full_pass(model, lengths, 6, inputs)
    check_against_full_pass(model, full, lengths, 6, inputs)


COUPLED = {
    "decoder": ("duplicate", "model=transformer"),
    "cross-attention": ("copy_add", "model=scaling", "sparse_ff.N=0"),
    "Terraformer": ("copy_add", "model=terraformer", "attention=[full]"),
}


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_positions_step_by_step_are_those_of_the_full_pass(name: str) -> None:
    data, *overrides = COUPLED[name]
    model = model_of((*overrides, "positions.kind=coupled"), data)
    tokens_BL = torch.randint(0, 14, (3, 16), generator=torch.Generator().manual_seed(7))
    tokens_BL[:, 9] = torch.tensor([0, 12, 0])  # a separator after the prompts, of a sum the plus as well
    inputs = () if name == "decoder" else (INPUTS,)
    with torch.no_grad():
        full = model(torch.nn.functional.pad(tokens_BL, (0, 1)), *inputs)
    lengths = torch.tensor([7, 4, 0])
    session = CachedSession(PreparedModel(model), 17, 3, *inputs)
    logits = session.start([row[:n].tolist() for row, n in zip(tokens_BL, lengths, strict=True)])
    rows = torch.arange(3)
    for i in range(9):
        assert_close(logits, full[rows, lengths + i], ROUNDING, f"token {i} after the prompt")
        if i == 4 and name == "decoder":
            order = torch.tensor([2, 0, 0])
            session.reorder(order)
            tokens_BL, full, lengths = tokens_BL[order], full[order], lengths[order]
        logits = session.step(tokens_BL[rows, lengths + i])


@pytest.mark.parametrize("name", ["transformer", "sparse QKV", "SRU", "everything"])
def test_reordered_rows_go_on_as_what_they_were(name: str) -> None:
    model = model_of(DECODERS[name], "stdlib")
    prompts, rows = [[4, 5], [9, 8, 7, 6], [1]], torch.tensor([2, 0, 0])
    moved = CachedSession(PreparedModel(model), 20, 3)
    moved.start(prompts)
    moved.step(torch.tensor([1, 2, 3]))
    moved.reorder(rows)
    straight = CachedSession(PreparedModel(model), 20, 3)
    straight.start([prompts[i] for i in rows.tolist()])
    straight.step(torch.tensor([3, 1, 1]))
    for token in (5, 6, 7):
        following = torch.full((3,), token)
        assert_close(moved.step(following), straight.step(following), ROUNDING, f"after token {token}")


def test_a_prepared_model_serves_one_generation_after_another() -> None:
    prepared = PreparedModel(model_of(DECODERS["everything"], "stdlib"))
    first, second = (CachedSession(prepared, 20, 1) for _ in range(2))
    logits = first.start([[3, 4, 5]])
    first.step(torch.tensor([7]))
    assert torch.equal(second.start([[3, 4, 5]]), logits)

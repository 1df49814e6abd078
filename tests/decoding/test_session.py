"""Decoding with caches gives what the full pass gives, for every mechanism, batch and shape of prompt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efftx.decoding.session import CachedSession, PreparedModel
from efftx.errors import UserError
from tests.tolerances import ROUNDING, assert_close

from .models import DECODERS, INPUTS, LSH, PAIRS, check_against_full_pass, full_pass, model_of


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


REORDERED = {
    **{name: (words, ()) for name, words in DECODERS.items()},
    **{f"lsh, {name}": (("model=reformer", "attention=[lsh]", *words), ()) for name, words in LSH.items()},
    **{name: ((*words, "positions.max_len=64", "n_layers=2"), (INPUTS,)) for name, words in PAIRS.items()},
}


@pytest.mark.usefixtures("one_rotation")
@pytest.mark.parametrize("name", REORDERED)
def test_reordered_rows_go_on_as_what_they_were(name: str) -> None:
    words, inputs = REORDERED[name]
    prepared = PreparedModel(model_of(words, "stdlib"))
    prompts, orders = [[4, 5], [9, 8, 7, 6], [1]], ([2, 0, 1], [1, 1, 0])
    torch.manual_seed(2)
    moved = CachedSession(prepared, 20, 3, *inputs)
    moved.start(prompts)
    told, rows = torch.tensor([[1], [2], [3]]), torch.arange(3)
    moved.step(told[:, 0])
    for n, order in enumerate(orders):
        moved.reorder(torch.tensor(order))
        rows, told = rows[order], told[order]
        torch.manual_seed(2)  # rows are hashed alike wherever they stand
        straight = CachedSession(prepared, 20, 3, *(given[rows] for given in inputs))
        straight.start([prompts[i] for i in rows.tolist()])
        for token_B in told.T:
            straight.step(token_B)
        for i in range(3):
            token_B = torch.tensor([5, 6, 7]) + i + 5 * n
            assert_close(moved.step(token_B), straight.step(token_B), ROUNDING, f"step {i} after order {order}")
            told = torch.cat([told, token_B[:, None]], 1)


@pytest.mark.parametrize("name", ["transformer", "strided", "everything", "lsh, paper's form"])
def test_rows_have_their_room_again_once_the_longest_is_dropped(name: str) -> None:
    prepared = PreparedModel(model_of(REORDERED[name][0], "stdlib"))
    prompts = [[4, 5, 6, 7, 8, 9, 1, 2, 3, 4], [7, 2, 9]]
    torch.manual_seed(2)
    moved = CachedSession(prepared, 12, 2)
    moved.start(prompts)
    moved.step(torch.tensor([3, 6]))
    moved.reorder(torch.tensor([1, 1]))
    torch.manual_seed(2)
    straight = CachedSession(prepared, 12, 2)
    straight.start([prompts[1], prompts[1]])
    straight.step(torch.tensor([6, 6]))
    for token in range(5, 12):  # the 0 in front, three of the prompt and one step stand in the row already
        token_B = torch.tensor([token, token + 1])
        assert_close(moved.step(token_B), straight.step(token_B), ROUNDING, f"token {token}")
    for session in (moved, straight):
        with pytest.raises(UserError, match="12 tokens already"):
            session.step(torch.tensor([1, 1]))


def test_an_encoder_that_hashes_gives_equal_rows_the_same_whatever_stands_beside_them() -> None:
    words = ("model=scaling", "attention=[lsh]", "lsh.n_buckets=[4]", "lsh.chunk_len=4", "lsh.n_hashes=1")
    prepared = PreparedModel(model_of((*words, "positions.max_len=64"), "copy_add"))
    inputs = torch.randint(1, 14, (2, 24), generator=torch.Generator().manual_seed(1))

    def encoded(*rows: int) -> Tensor:
        torch.manual_seed(2)
        session = CachedSession(prepared, 12, len(rows), inputs[list(rows)])
        return session.start([[]] * len(rows))

    beside = encoded(0, 0, 1)
    assert torch.equal(beside[0], beside[1])
    assert_close(beside[:1], encoded(0), ROUNDING, "alone")
    assert not torch.allclose(beside[1], beside[2])


def test_a_prepared_model_serves_one_generation_after_another() -> None:
    prepared = PreparedModel(model_of(DECODERS["everything"], "stdlib"))
    first, second = (CachedSession(prepared, 20, 1) for _ in range(2))
    logits = first.start([[3, 4, 5]])
    first.step(torch.tensor([7]))
    assert torch.equal(second.start([[3, 4, 5]]), logits)

"""Greedy decoding reads what a model says after its own words, and nothing else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from efftx.decoding.uncached import greedy

VOCABULARY = 12


class Copies:
    """Says the inputs one by one, made from the tokens before: token t is input t, if token t - 1 was input t - 1."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, tokens_BL: Tensor, inputs_BE: Tensor) -> Tensor:
        self.lengths.append(tokens_BL.shape[1])
        length = tokens_BL.shape[1]
        said_BL = F.pad(tokens_BL, (1, 0))[:, :-1]
        expected_BL = F.pad(inputs_BE, (1, 0))[:, :length]
        on_track_BL = (said_BL == expected_BL).cumprod(1).bool()
        words_BL = inputs_BE[:, :length].where(on_track_BL, torch.tensor(VOCABULARY - 1))
        return F.one_hot(words_BL, VOCABULARY).float()


def test_each_token_is_chosen_after_the_tokens_chosen_before() -> None:
    inputs = torch.tensor([[5, 6, 7, 1], [9, 2, 4, 1]])
    assert greedy(Copies(), inputs, 10) == [[5, 6, 7, 1], [9, 2, 4, 1]]


def test_a_row_that_has_ended_stays_so_while_others_go_on() -> None:
    # Past its end the short row would go on with 8, 8.
    inputs = torch.tensor([[5, 1, 8, 8], [5, 6, 7, 1]])
    assert greedy(Copies(), inputs, 10) == [[5, 1], [5, 6, 7, 1]]


def test_it_stops_when_all_rows_have_ended() -> None:
    model = Copies()
    greedy(model, torch.tensor([[5, 1, 0, 0], [5, 6, 1, 0]]), 4)
    assert model.lengths == [1, 2, 3]


def test_a_row_without_an_end_is_cut() -> None:
    assert greedy(Copies(), torch.tensor([[5, 6, 7, 8]]), 3) == [[5, 6, 7]]


def test_another_end_of_sequence_can_be_named() -> None:
    assert greedy(Copies(), torch.tensor([[5, 1, 3, 4]]), 4, eos=3) == [[5, 1, 3]]


def test_a_batch_without_rows_gives_none() -> None:
    assert greedy(Copies(), torch.zeros(0, 4, dtype=torch.int64), 4) == []


def test_no_room_for_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="max_len is 0"):
        greedy(Copies(), torch.tensor([[1]]), 0)


def test_no_gradient_is_kept() -> None:
    weight = torch.ones(VOCABULARY, requires_grad=True)

    def model(tokens_BL: Tensor, inputs_BE: Tensor) -> Tensor:
        logits = weight.expand(*tokens_BL.shape, VOCABULARY) * 2
        assert not logits.requires_grad
        return logits

    greedy(model, torch.tensor([[1]]), 2)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_every_row_is_what_the_model_says_of_that_row_alone(rows: int, max_len: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(VOCABULARY, VOCABULARY, generator=generator)  # next token from the last one and the input
    inputs = torch.randint(2, VOCABULARY, (rows, 1), generator=generator)

    def model(tokens_BL: Tensor, inputs_BE: Tensor) -> Tensor:
        return table[F.pad(tokens_BL, (1, 0))[:, :-1]] + table[inputs_BE]

    found = greedy(model, inputs, max_len)
    for row, tokens in zip(inputs, found, strict=True):
        last, expected = 0, []
        for _ in range(max_len):
            last = int((table[last] + table[row[0]]).argmax())
            expected.append(last)
            if last == 1:
                break
        assert tokens == expected

"""A full pass a token is decoding by definition: every row is what the model says of that row alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efftx.config.compose import compose
from efftx.decoding.uncached import UncachedSession
from efftx.models.build import build_model
from tests.decoding.tables import Table

SMALL = ("size=smoke", "threads=1", "dropout=0")
CPU = torch.device("cpu")


def alone(model: torch.nn.Module, row: list[int], *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[*row, 0]]), *inputs)[0, len(row)]


def test_prompts_of_different_lengths_and_empty_ones_are_read_each_for_itself() -> None:
    model, prompts = Table(5, seed=0), [[3, 1, 4], [], [2], [2, 4, 1]]
    session = UncachedSession(model, 8)
    first = session.start(prompts)
    second = session.step(torch.tensor([1, 2, 3, 4]))
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(first[i], alone(model, prompt))
        torch.testing.assert_close(second[i], alone(model, [*prompt, i + 1]))


@pytest.mark.parametrize(
    "words",
    [
        ("model=transformer", "data=duplicate", "data.length=32"),
        ("model=reformer", "data=duplicate", "data.length=32", "attention=[local,full]"),
        ("model=transformer", "data=duplicate", "data.length=32", "sparse_ff.N=4", "sru.n_layers=1"),
    ],
)
def test_a_decoder_predicts_as_it_does_in_one_pass_over_the_whole_row(words: tuple[str, ...]) -> None:
    model = build_model(compose([*words, *SMALL]), 11, CPU, torch.float64).eval()
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(tokens)
    session = UncachedSession(model, 6)
    torch.testing.assert_close(session.start(tokens[:, :2].tolist()), whole[:, 2])
    for t in range(2, 5):
        torch.testing.assert_close(session.step(tokens[:, t]), whole[:, t + 1])


@pytest.mark.parametrize("model", ["scaling", "terraformer"])
def test_an_encoder_decoder_reads_its_own_row_of_the_input(model: str) -> None:
    words = (f"model={model}", "data=glue", "data.path=efftx:samples/glue", "attention=[full]")
    built = build_model(compose([*words, *SMALL]), 11, CPU, torch.float64).eval()
    inputs = torch.tensor([[5, 6, 7, 1], [9, 2, 1, 0], [3, 1, 0, 0]])
    session = UncachedSession(built, 6, inputs)
    found = session.start([[4, 8], [], [2, 3]])
    for i, prompt in enumerate([[4, 8], [], [2, 3]]):
        torch.testing.assert_close(found[i], alone(built, prompt, inputs[i : i + 1]))


def test_a_reordered_row_goes_on_as_what_it_was_taken_from_with_its_input() -> None:
    model, inputs = Table(5, seed=0), torch.tensor([[1], [2], [3]])
    session = UncachedSession(model, 8, inputs)
    session.start([[1, 2], [3, 4], [4, 4]])
    session.reorder(torch.tensor([2, 2, 0]))
    found = session.step(torch.tensor([0, 1, 2]))
    for i, row in enumerate([2, 2, 0]):
        prompt = [[1, 2], [3, 4], [4, 4]][row]
        torch.testing.assert_close(found[i], alone(model, [*prompt, i], inputs[row : row + 1]))


def test_a_full_row_is_refused() -> None:
    session = UncachedSession(Table(5, seed=0), 3)
    with pytest.raises(ValueError, match="capacity is 3"):
        session.start([[1], [1, 2, 3]])
    session.start([[1, 2]])
    with pytest.raises(ValueError, match="3 tokens leaves no room"):
        session.step(torch.tensor([1]))

"""Coupled positions in whole models: digits of one significance are told apart by nothing but what they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efftx.errors import UserError
from efftx.layers.initialize import materialize
from efftx.layers.positions import CoupledPositions, LearnedPositions
from efftx.models.embedding import embed
from tests.tolerances import ROUNDING, assert_close

PLUS = 12
SUMS = (
    "data=copy_add",
    "data.task=add",
    "data.length=16",
    "data.max_digits=8",
    "data.eval_min_digits=8",
    "data.eval_max_digits=12",
)
DENSE = ("sparse_ff.N=0", "sparse_qkv.S=0")
FORMS = {
    "Transformer": ("model=scaling", *DENSE),
    "Terraformer": ("model=terraformer",),
    "Terraformer, dense": ("model=terraformer", *DENSE, "sparse_loss.S=0", "attention=[full]"),
}


def test_a_sum_of_the_same_numbers_in_another_order_is_the_same_to_a_model_without_convolutions(build) -> None:
    """All that attention knows of 16 + 2347 is which digits stand at which place, as of 2347 + 16."""
    answer = torch.tensor([[5, 8, 6, 4, 1]])
    one, other = torch.tensor([[8, 3, PLUS, 9, 6, 5, 4]]), torch.tensor([[9, 6, 5, 4, PLUS, 8, 3]])
    model = build(*SUMS, *FORMS["Transformer"], "positions.kind=coupled", vocab_size=13).eval()
    assert_close(model(answer, one), model(answer, other), ROUNDING)
    uncoupled = build(*SUMS, *FORMS["Transformer"], "positions.kind=learned", vocab_size=13).eval()
    with torch.no_grad():
        assert float((uncoupled(answer, one) - uncoupled(answer, other)).abs().max()) > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_both_stacks_read_one_table_from_one_start(form: str, build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(*SUMS, *FORMS[form], "positions.kind=coupled", "positions.max_len=40", vocab_size=13)
    assert model.encoder_positions is model.positions
    tables = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("table")]
    assert tables == [(40, model.embedding.weight.shape[1])]
    starts: list[Tensor] = []
    reads = CoupledPositions.of_tokens

    def listened(self: CoupledPositions, tokens_BL: Tensor, start_B1: Tensor | None = None) -> Tensor:
        assert start_B1 is not None
        starts.append(start_B1)
        return reads(self, tokens_BL, start_B1)

    monkeypatch.setattr(CoupledPositions, "of_tokens", listened)
    generator = torch.Generator().manual_seed(1)
    inputs, tokens = (torch.randint(2, 12, (64, n), generator=generator) for n in (9, 7))
    model(tokens, inputs)
    assert torch.equal(starts[0], starts[1])
    assert starts[0].shape == (64, 1)
    assert len(starts[0].unique()) > 10


def test_a_decoder_alone_couples_the_two_words_of_the_duplication_task(build) -> None:
    model = build("model=transformer", "data=duplicate", "data.length=8", "positions.kind=coupled").eval()
    tokens = torch.tensor([[0, 5, 6, 7, 0, 5, 6, 7]])
    read = torch.tensor([[0, 0, 5, 6, 7, 0, 5, 6]])
    expected = model.embedding.weight[read] + model.positions.table[torch.tensor([[0, 0, 1, 2, 3, 0, 1, 2]])]
    assert torch.equal(embed(read, model.embedding, model.positions, 0.0), expected)
    assert model(tokens).shape == (1, 8, 23)


def test_in_training_every_entry_of_the_table_is_used_and_none_beyond_it() -> None:
    positions = CoupledPositions(12, 4, (0,)).double()
    materialize(positions, torch.device("cpu"), 0)
    tokens = torch.tensor([[1, 2, 3, 0, 1]]).expand(400, 5)  # no separator in front: positions 1 2 3 0 1
    start = positions.starts(400, 5)
    assert start is not None
    assert start.unique().tolist() == list(range(7))  # row 11 of the table is the 4th token's of a row without one
    found = positions.of_tokens(tokens, start)
    assert torch.equal(found[0], positions.table[torch.tensor([1, 2, 3, 0, 1]) + start[0]])
    found.sum().backward()
    used = positions.table.grad
    assert used is not None
    assert torch.equal(used.abs().sum(1) > 0, torch.arange(12) < 10)
    positions.eval()
    assert positions.starts(400, 5) is None
    assert torch.equal(positions.of_tokens(tokens)[0], positions.table[torch.tensor([1, 2, 3, 0, 1])])


def test_a_row_as_long_as_the_table_allows_starts_from_0_and_reads_its_last_entry() -> None:
    positions = CoupledPositions(6, 4, (0,)).double()
    materialize(positions, torch.device("cpu"), 0)
    start = positions.starts(3, 5)
    assert start is not None
    assert start.tolist() == [[0]] * 3
    assert torch.equal(positions.of_tokens(torch.ones(3, 5, dtype=torch.int64), start)[0, -1], positions.table[5])


def test_a_learned_table_draws_no_start(build) -> None:
    """So what was trained before there were coupled positions is trained to the same bits."""
    model = build(*SUMS, *FORMS["Transformer"], "positions.kind=learned", vocab_size=13)
    assert type(model.positions) is LearnedPositions
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model(torch.tensor([[5, 8, 6]]), torch.tensor([[8, 3, PLUS, 9]]))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("model=transformer", "data=stdlib"), "data=stdlib"),
        (("model=scaling", *DENSE, *SUMS, "positions.max_len=16"), "positions.max_len=16"),
    ],
)
def test_what_cannot_be_coupled_is_refused(configure, overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError) as raised:
        configure(*overrides, "positions.kind=coupled")
    assert raised.value.kind == "bad_value"
    assert says in raised.value.message
    assert raised.value.hint


def test_a_table_one_longer_than_the_longest_row_is_long_enough(configure) -> None:
    configure("model=scaling", *DENSE, *SUMS, "positions.kind=coupled", "positions.max_len=17")


def test_they_are_of_the_token_that_is_read_wherever_the_sequence_is_shifted(build, tokens) -> None:
    words = ["model=sparse_transformer", "data=duplicate", "init.zero_logits=false"]
    positions = ("positions.kind=coupled", "positions={kind: coupled, before_shift: false}")
    shifted, not_shifted = (build(*words, word).eval() for word in positions)
    assert type(shifted.positions) is type(not_shifted.positions) is CoupledPositions
    assert torch.equal(shifted(tokens()), not_shifted(tokens()))

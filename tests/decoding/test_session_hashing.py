"""Decoding with hash attention: the full pass where one chunk holds the row, and each row for itself everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efftx.decoding.session import CachedSession, PreparedModel
from tests.tolerances import ROUNDING, assert_close

from .models import LSH, check_against_full_pass, full_pass, model_of, random_tokens


@pytest.mark.usefixtures("one_rotation")
@pytest.mark.parametrize("lengths", [(5,), (0,), (3, 11, 0)], ids=str)
@pytest.mark.parametrize("name", LSH)
def test_hashing_step_by_step_is_the_full_pass_where_one_chunk_holds_the_row(
    name: str, lengths: tuple[int, ...]
) -> None:
    model = model_of(
        ("model=reformer", "attention=[lsh]", "lsh.n_buckets=[4]", "lsh.chunk_len=64", *LSH[name]), "stdlib"
    )
    torch.manual_seed(2)  # both draw one rotation a layer
    full = full_pass(model, lengths, 20)
    torch.manual_seed(2)
    check_against_full_pass(model, full, lengths, 20)


def test_hashing_with_many_rounds_step_by_step_comes_near_the_full_pass() -> None:
    model = model_of(("model=reformer", "attention=[lsh]", "lsh.n_hashes=64", "lsh.chunk_len=8"), "stdlib")
    full = full_pass(model, (5,), 20).log_softmax(-1)
    tokens = random_tokens(1, 25)
    session = CachedSession(PreparedModel(model), 26, 1)
    logits = [session.start([tokens[0, :5].tolist()])] + [session.step(tokens[:, 5 + i]) for i in range(20)]
    distance = (torch.stack(logits, 1).log_softmax(-1) - full[:, 5:26]).abs().mean()
    others = (full[:, 6:26] - full[:, 5:25]).abs().mean()
    assert distance < 0.1 * others


LATER_FORM = ("lsh.attend_across_buckets=true", "lsh.allow_duplicates=true")
HASHING = {
    "paper's form": (),
    "duplicates allowed": ("lsh.allow_duplicates=true",),
    "across buckets": ("lsh.attend_across_buckets=true",),
    "authors' later form": LATER_FORM,
    "authors' later form, one round": (*LATER_FORM, "lsh.n_hashes=1"),
    "authors' later form, automatic buckets": (*LATER_FORM, "lsh.n_buckets=[]"),
}


@pytest.mark.parametrize("lengths", [(3, 40, 11), (0, 20, 30)], ids=str)
@pytest.mark.parametrize("chunk_len", [4, 8])
@pytest.mark.parametrize("form", HASHING)
def test_hashing_a_prompt_does_not_depend_on_how_long_the_others_are(
    form: str, lengths: tuple[int, ...], chunk_len: int
) -> None:
    overrides = ("model=reformer", "attention=[lsh]", "lsh.n_buckets=[4]", f"lsh.chunk_len={chunk_len}", *HASHING[form])
    prepared = PreparedModel(model_of(overrides, "stdlib"))
    prompts = [row[:n].tolist() for row, n in zip(random_tokens(len(lengths), max(lengths)), lengths, strict=True)]

    def logits_of(*rows: list[int]) -> Tensor:
        torch.manual_seed(2)
        session = CachedSession(prepared, 64, len(rows))
        return torch.stack([session.start(rows), session.step(torch.full((len(rows),), 5))], 1)

    alone = torch.cat([logits_of(prompt) for prompt in prompts])
    assert_close(logits_of(*prompts), alone, ROUNDING, "prompts of several lengths")


@pytest.mark.parametrize("capacity", [8, 30, 64])
@pytest.mark.parametrize("form", HASHING)
def test_hashing_a_prompt_is_hashing_a_row_of_training_whatever_the_capacity(form: str, capacity: int) -> None:
    """The prompt's logits are those of the pass over the prompt alone: the number of buckets is the model's."""
    overrides = ("model=reformer", "attention=[lsh]", "lsh.n_buckets=[4]", "lsh.chunk_len=4", *HASHING[form])
    model = model_of(overrides, "stdlib")
    tokens = random_tokens(1, 7)
    torch.manual_seed(2)
    with torch.no_grad():
        expected = model(torch.nn.functional.pad(tokens, (0, 1)))[:, -1]
    torch.manual_seed(2)
    session = CachedSession(PreparedModel(model), capacity, 1)
    assert_close(session.start([tokens[0].tolist()]), expected, ROUNDING, "the prompt")


@pytest.mark.parametrize("length", [8, 20])
def test_rows_that_attend_in_full_in_training_do_so_in_decoding(length: int) -> None:
    """Neither a short capacity nor a short prompt makes a model that hashes attend in full, or the other way round."""
    tokens = random_tokens(1, length)
    for full_below in (0, 32, 64):
        # At 64, as long as the rows of this size, nothing is hashed and the keys of hashing are refused.
        hashing = ("lsh.n_hashes=1", "lsh.n_buckets=[8]", "lsh.chunk_len=4") if full_below < 64 else ()
        model = model_of(("model=reformer", "attention=[lsh]", f"lsh.full_below={full_below}", *hashing), "stdlib")
        torch.manual_seed(2)
        with torch.no_grad():
            expected = model(torch.nn.functional.pad(tokens, (0, 1)))[:, -1]
        torch.manual_seed(2)
        session = CachedSession(PreparedModel(model), length + 1, 1)
        assert_close(session.start([tokens[0].tolist()]), expected, ROUNDING, f"full_below={full_below}")


@pytest.mark.parametrize("form", ["paper's form", "authors' later form", "authors' later form, automatic buckets"])
@pytest.mark.parametrize("n_padding", [1, 12, 40])
def test_padding_behind_an_input_changes_nothing_that_is_said(form: str, n_padding: int) -> None:
    hashing = ("lsh.n_buckets=[8]", "lsh.chunk_len=4", *HASHING[form])
    if "later" not in form:
        hashing = (*hashing, "lsh.attend_across_buckets=false", "lsh.allow_duplicates=false")
    prepared = PreparedModel(model_of(("model=terraformer", "positions.max_len=128", *hashing), "stdlib"))
    inputs = random_tokens(1, 20)

    def logits_of(inputs: Tensor) -> Tensor:
        torch.manual_seed(2)
        session = CachedSession(prepared, 8, 1, inputs)
        return torch.stack([session.start([[4, 5]]), *(session.step(torch.tensor([t])) for t in (6, 7))])

    padded = torch.nn.functional.pad(inputs, (0, n_padding))
    assert_close(logits_of(padded), logits_of(inputs), ROUNDING, "an input with padding")


def test_the_rows_of_a_hashing_generation_say_the_same_after_the_same() -> None:
    prepared = PreparedModel(model_of(("model=reformer", "attention=[lsh]", "lsh.chunk_len=4"), "stdlib"))
    session = CachedSession(prepared, 60, 3)
    prompt = random_tokens(1, 40)[0].tolist()
    for logits in (session.start([prompt] * 3), session.step(torch.tensor([4, 4, 4]))):
        assert_close(logits, logits[:1].expand(3, -1), ROUNDING, "three rows")

"""What stands behind a row's end changes nothing in the row, in every stack and with every mechanism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = ("data=summarization", "data.length=64", "data.target_length=24", "data.tokenizer=bytes")
PAPER = ("lsh.attend_across_buckets=false", "lsh.allow_duplicates=false")
LATER = ("lsh.attend_across_buckets=true", "lsh.allow_duplicates=true")
HASHING = ("attention=[lsh]", "lsh.full_below=0", "lsh.chunk_len=4")
STACKS = {
    "Terraformer": ("model=terraformer", "lsh.n_buckets=[8]"),
    "Terraformer, automatic buckets": ("model=terraformer",),
    "Terraformer, paper's form": ("model=terraformer", "lsh.n_buckets=[8]", *PAPER),
    "Terraformer, one round": ("model=terraformer", "lsh.n_buckets=[8]", "lsh.n_hashes=1"),
    "Terraformer, two buckets": ("model=terraformer", "lsh.n_buckets=[2]", "lsh.n_hashes=1", *PAPER),
    "Terraformer, one stream": ("model=terraformer", "reversible.enabled=false", *HASHING),
    "Terraformer, merged encoder": ("model=terraformer", "reversible.encoder=merged", *HASHING),
    "Terraformer, in full": ("model=terraformer", "attention=[full]"),
    "Terraformer, local": ("model=terraformer", "attention=[local]", "local.chunk_len=8"),
    "sparse": ("model=scaling",),
    "sparse encoder": ("model=scaling", "sparse_qkv.encoder=true", "sru.n_layers=1", "sru.d=8"),
    "cross-attention over hashes": ("model=scaling", "sparse_qkv.S=0", *HASHING, *LATER),
    "cross-attention over hashes, paper's form": ("model=scaling", "sparse_qkv.S=0", *HASHING, *PAPER),
    "cross-attention, local": ("model=scaling", "sparse_qkv.S=0", "attention=[local]", "local.chunk_len=8"),
    "dense": ("model=transformer", "stack=encoder_decoder", "positions.kind=learned"),
}


def losses_of(model: Any, tokens_BL: Tensor, inputs_BE: Tensor) -> Tensor:
    torch.manual_seed(3)  # the rotations
    with torch.no_grad():
        nll_BL: Tensor = model(tokens_BL, inputs_BE, losses=True)[0]
    return nll_BL


@pytest.mark.parametrize("name", STACKS)
def test_padding_behind_an_input_moves_no_token_loss(build: Callable[..., Any], name: str) -> None:
    model = build(*PADDING, *STACKS[name]).eval()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(1, 23, (3, 30), generator=generator)
    inputs[1, 17:] = 0
    inputs[2, 3:] = 0
    tokens = torch.randint(1, 23, (3, 20), generator=generator)
    expected = losses_of(model, tokens, inputs)
    for n_padding in (1, 2, 12, 34):
        padded = losses_of(model, tokens, F.pad(inputs, (0, n_padding)))
        torch.testing.assert_close(padded, expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("one_rotation")
@pytest.mark.parametrize("name", STACKS)
def test_a_row_among_longer_ones_is_the_row_alone(build: Callable[..., Any], name: str) -> None:
    model = build(*PADDING, *STACKS[name]).eval()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(1, 23, (3, 40), generator=generator)
    tokens = torch.randint(1, 23, (3, 20), generator=generator)
    lengths = (40, 13, 5)
    for row, n in enumerate(lengths):
        inputs[row, n:] = 0
    together = losses_of(model, tokens, inputs)
    for row, n in enumerate(lengths):
        alone = losses_of(model, tokens[row : row + 1], inputs[row : row + 1, :n])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-12, rtol=0)


def test_the_authors_padding_takes_places_among_the_tokens(build: Callable[..., Any]) -> None:
    model = build(*PADDING, *STACKS["Terraformer"], "lsh.padding_in_chunks=true").eval()
    inputs = torch.randint(1, 23, (1, 30), generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(1, 23, (1, 20), generator=torch.Generator().manual_seed(1))
    moved = losses_of(model, tokens, F.pad(inputs, (0, 12))) - losses_of(model, tokens, inputs)
    assert moved.abs().max() > 1e-4


def test_gradients_of_padded_rows_are_those_of_the_rows_alone(build: Callable[..., Any]) -> None:
    model = build(*PADDING, *STACKS["Terraformer"]).eval()
    generator = torch.Generator().manual_seed(0)
    inputs, tokens = (torch.randint(1, 23, (2, n), generator=generator) for n in (30, 20))
    found = []
    for n_padding in (0, 12):
        model.zero_grad()
        torch.manual_seed(3)
        model(tokens, F.pad(inputs, (0, n_padding)), losses=True)[0].sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-11, rtol=1e-11)

"""Small models of every mechanism to decode with, and the comparison with the full pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efftx.config.compose import compose
from efftx.decoding.session import CachedSession, PreparedModel
from efftx.models.build import build_model
from tests.tolerances import ROUNDING, assert_close

VOCABULARY = 23
COMMON = ("size=smoke", "data.length=64", "dropout=0")
BY_TOKEN = ("sparse_ff.N=4", "sparse_ff.controller=token")
DECODERS = {
    "transformer": ("model=transformer",),
    "shared QK": ("model=transformer", "share_qk=true"),
    "by query block": ("model=transformer", "full.query_block=7", "attention_bias=true"),
    "local": ("model=transformer", "attention=[local]", "local.chunk_len=8"),
    "local, shared QK": ("model=transformer", "attention=[local]", "local.chunk_len=8", "share_qk=true"),
    "local of one": ("model=transformer", "attention=[local]", "local.chunk_len=1", "share_qk=true"),
    "local and no attention": ("model=transformer", "attention=[local,identity]", "local.chunk_len=8"),
    "local window": ("model=transformer", "attention=[local]", "local.window=5"),
    "local window, shared QK": ("model=transformer", "attention=[local]", "local.window=5", "share_qk=true"),
    "strided": ("model=transformer", "attention=[strided]", "strided.stride=5"),
    "strided, shared QK": ("model=transformer", "attention=[strided]", "strided.stride=5", "share_qk=true"),
    "strided, merged": ("model=transformer", "attention=[strided]", "strided.stride=5", "strided.mode=merged"),
    "strided, merged, shared QK": (
        "model=transformer",
        "attention=[strided]",
        "strided.stride=5",
        "strided.mode=merged",
        "share_qk=true",
    ),
    "strided by head": ("model=transformer", "attention=[strided,full]", "strided.stride=5", "strided.mode=heads"),
    "strided of one": ("model=transformer", "attention=[strided]", "strided.stride=1", "strided.mode=merged"),
    "fixed": ("model=transformer", "attention=[fixed]", "fixed.stride=6", "fixed.c=2"),
    "fixed, shared QK": ("model=transformer", "attention=[fixed]", "fixed.stride=6", "fixed.c=2", "share_qk=true"),
    "fixed, interleaved": ("model=transformer", "attention=[fixed]", "fixed.stride=6", "fixed.mode=interleaved"),
    "fixed, interleaved, shared QK": (
        "model=transformer",
        "attention=[fixed]",
        "fixed.stride=6",
        "fixed.mode=interleaved",
        "share_qk=true",
    ),
    "fixed, own sub-blocks": (
        "model=transformer",
        "attention=[fixed]",
        "fixed.stride=6",
        "fixed.c=2",
        "fixed.sub_blocks=2",
    ),
    "fixed by head": ("model=transformer", "attention=[fixed]", "fixed.stride=7", "fixed.c=3", "fixed.mode=heads"),
    "Sparse Transformer": ("model=sparse_transformer", "init.zero_logits=false"),
    "narrow queries, positions before the shift": (
        "model=sparse_transformer",
        "d_qk=8",
        "attention=[fixed,full]",
        "positions.kind=digits",
        "init.zero_logits=false",
    ),
    "reversible, concatenated": ("model=reformer", "attention=[full]", "n_layers=3"),
    "reversible, mean": ("model=reformer", "attention=[full,local]", "reversible.merge=mean"),
    "axial positions": (
        "model=transformer",
        "positions.kind=axial",
        "positions.axial_shape=[8,8]",
        "positions.axial_dims=[16,16]",
    ),
    "sinusoidal, tied, wide heads": (
        "model=transformer",
        "positions.kind=sinusoidal",
        "tie_embeddings=true",
        "d_head=12",
    ),
    "digits": ("model=transformer", "positions.kind=digits", "activation=gelu"),
    "no positions": ("model=transformer", "positions.kind=none"),
    "sparse FF": ("model=scaling", "stack=decoder", "sparse_qkv.S=0"),
    "sparse FF, multiplied": (
        "model=scaling",
        "stack=decoder",
        "sparse_qkv.S=0",
        "sparse_ff.multiply_by_controller=true",
    ),
    "sparse FF, the paper's form": ("model=scaling", "stack=decoder", "sparse_qkv.S=0", "sparse_ff.form=paper"),
    "sparse FF, frozen": (
        "model=scaling",
        "stack=decoder",
        "sparse_qkv.S=0",
        "sparse_ff.controller=frozen",
        "sparse_ff.multiply_by_controller=true",
    ),
    "sparse FF, token bias": (
        "model=scaling",
        "stack=decoder",
        "sparse_qkv.S=0",
        "sparse_ff.token_bias=1",
        "sparse_ff.multiply_by_controller=true",
    ),
    "sparse FF, oracle": (
        "model=scaling",
        "stack=decoder",
        "sparse_qkv.S=0",
        "sparse_ff.controller=oracle",
        "sparse_ff.form=first_bias",
    ),
    "sparse FF, by token": (
        "model=scaling",
        "stack=decoder",
        "sparse_qkv.S=0",
        "sparse_ff.controller=token",
        "sparse_ff.form=paper",
    ),
    "sparse FF, by token, reversible": ("model=reformer", "attention=[full]", *BY_TOKEN),
    "sparse QKV": ("model=scaling", "stack=decoder", "sparse_ff.N=0"),
    "sparse QKV, shared": ("model=scaling", "stack=decoder", "share_qk=true"),
    "sparse QKV, averaged": ("model=scaling", "stack=decoder", "share_qk=true", "sparse_qkv.average_qk=true"),
    "sparse QKV, F = 1": ("model=scaling", "stack=decoder", "sparse_qkv.F=1"),
    "sparse QKV, paper's kernel": ("model=scaling", "stack=decoder", "sparse_qkv.kernel=paper", "sparse_qkv.F=5"),
    "sparse QKV, values read the input": ("model=scaling", "stack=decoder", "sparse_qkv.concat_input=true"),
    "sparse output": ("model=scaling", "stack=decoder", "sparse_qkv.output=multiplicative_convolution"),
    "dense output": ("model=scaling", "stack=decoder", "sparse_qkv.output=dense"),
    "multiplicative only": ("model=scaling", "stack=decoder", "sparse_qkv.variant=multiplicative"),
    "convolution only": ("model=scaling", "stack=decoder", "sparse_qkv.variant=convolution"),
    "modular": ("model=scaling", "stack=decoder", "sparse_qkv.variant=modular"),
    "low rank": ("model=scaling", "stack=decoder", "sparse_qkv.variant=low_rank", "sparse_qkv.output=multiplicative"),
    "sparse loss": ("model=scaling", "stack=decoder", "sparse_loss.S=4"),
    "SRU": ("model=transformer", "sru.n_layers=2", "sru.d=8"),
    "everything": ("model=terraformer", "stack=decoder", "attention_per_block=2", "attention=[full]"),
}
LSH = {
    "paper's form": (),
    "duplicates allowed": ("lsh.allow_duplicates=true",),
    "one round": ("lsh.n_hashes=1",),
    "beside local": ("attention=[local,lsh]",),
}
PAIRS = {
    "cross-attention": ("model=scaling", "sparse_ff.N=0", "sparse_qkv.S=0"),
    "sparse": ("model=scaling",),
    "sparse query": ("model=scaling", "sparse_qkv.cross=query"),
    "reversible cross-attention": ("model=scaling", "reversible.enabled=true", "reversible.merge=mean"),
    "sparse, by token": ("model=scaling", *BY_TOKEN),
    "Terraformer, by token": ("model=terraformer", "attention=[full]", *BY_TOKEN),
    "Terraformer, token bias": ("model=terraformer", "attention=[full]", "sparse_ff.token_bias=0.5"),
    "Terraformer": ("model=terraformer", "attention=[full]"),
    "Terraformer, short": ("model=terraformer", "lsh.full_below=200"),
    "Terraformer, merged encoder": ("model=terraformer", "attention=[full]", "reversible.encoder=merged"),
    "strided and fixed": ("model=scaling", "attention=[strided,fixed]", "strided.stride=4", "share_qk=true"),
    "Terraformer, fixed": ("model=terraformer", "attention=[fixed]", "fixed.stride=5", "fixed.mode=interleaved"),
    "concatenated, one stream": ("model=terraformer", "attention=[full]", "reversible.enabled=false"),
}
INPUTS = torch.tensor([[4, 9, 2, 7, 7, 1], [3, 8, 0, 0, 0, 0], [5, 5, 6, 1, 2, 0]])


def model_of(overrides: Sequence[str], data: str):
    config = compose([*COMMON, f"data={data}", *overrides])
    model = build_model(config, VOCABULARY, torch.device("cpu"), torch.float64).eval()
    # Biases and scales start where a mistake in them would not show.
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def random_tokens(batch: int, length: int, seed: int = 3) -> Tensor:
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def check_against_full_pass(model, full, lengths: Sequence[int], n_steps: int, *inputs: Tensor) -> None:
    """`full` is what the model gives for whole rows, made before its weights were laid out anew."""
    batch, tokens_BL = len(lengths), random_tokens(len(lengths), max(lengths) + n_steps)
    session = CachedSession(PreparedModel(model), max(lengths) + n_steps + 1, batch, *inputs)
    logits = session.start([row[:n].tolist() for row, n in zip(tokens_BL, lengths, strict=True)])
    for i in range(n_steps + 1):
        place_B = torch.tensor(lengths) + i
        expected = full[torch.arange(batch), place_B]
        assert_close(logits, expected, ROUNDING, f"token {i} after the prompt")
        if i < n_steps:
            logits = session.step(tokens_BL[torch.arange(batch), place_B])


def full_pass(model, lengths: Sequence[int], n_steps: int, *inputs: Tensor) -> Tensor:
    tokens = random_tokens(len(lengths), max(lengths) + n_steps)
    with torch.no_grad():
        return model(torch.nn.functional.pad(tokens, (0, 1)), *inputs)

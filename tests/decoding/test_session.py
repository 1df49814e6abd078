"""Decoding with caches gives what the full pass gives, for every mechanism, batch and shape of prompt."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from efftx.config.compose import compose
from efftx.decoding.session import CachedSession, PreparedModel
from efftx.errors import UserError
from efftx.layers.cache import SlotCache
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


def _model(overrides: Sequence[str], data: str):
    config = compose([*COMMON, f"data={data}", *overrides])
    model = build_model(config, VOCABULARY, torch.device("cpu"), torch.float64).eval()
    # Biases and scales start where a mistake in them would not show.
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def _tokens(batch: int, length: int, seed: int = 3) -> Tensor:
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def _check_against_full_pass(model, full, lengths: Sequence[int], n_steps: int, *inputs: Tensor) -> None:
    """`full` is what the model gives for whole rows, made before its weights were laid out anew."""
    batch, tokens_BL = len(lengths), _tokens(len(lengths), max(lengths) + n_steps)
    session = CachedSession(PreparedModel(model), max(lengths) + n_steps + 1, batch, *inputs)
    logits = session.start([row[:n].tolist() for row, n in zip(tokens_BL, lengths, strict=True)])
    for i in range(n_steps + 1):
        place_B = torch.tensor(lengths) + i
        expected = full[torch.arange(batch), place_B]
        assert_close(logits, expected, ROUNDING, f"token {i} after the prompt")
        if i < n_steps:
            logits = session.step(tokens_BL[torch.arange(batch), place_B])


def _full(model, lengths: Sequence[int], n_steps: int, *inputs: Tensor) -> Tensor:
    tokens = _tokens(len(lengths), max(lengths) + n_steps)
    with torch.no_grad():
        return model(torch.nn.functional.pad(tokens, (0, 1)), *inputs)


@pytest.mark.parametrize("lengths", [(5,), (0,), (9, 9), (3, 11, 0)], ids=str)
@pytest.mark.parametrize("name", DECODERS)
def test_step_by_step_is_the_full_pass(name: str, lengths: tuple[int, ...]) -> None:
    model = _model(DECODERS[name], "stdlib")
    full = _full(model, lengths, 20)
    _check_against_full_pass(model, full, lengths, 20)


INPUTS = torch.tensor([[4, 9, 2, 7, 7, 1], [3, 8, 0, 0, 0, 0], [5, 5, 6, 1, 2, 0]])


@pytest.mark.parametrize("lengths", [(5,), (0,), (0, 0, 0), (2, 0, 4)], ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_step_by_step_is_the_full_pass_behind_an_encoder(name: str, lengths: tuple[int, ...]) -> None:
    model = _model((*PAIRS[name], "positions.max_len=64"), "stdlib")
    inputs = INPUTS[: len(lengths)]
    full = _full(model, lengths, 6, inputs)
    _check_against_full_pass(model, full, lengths, 6, inputs)


COUPLED = {
    "decoder": ("duplicate", "model=transformer"),
    "cross-attention": ("copy_add", "model=scaling", "sparse_ff.N=0"),
    "Terraformer": ("copy_add", "model=terraformer", "attention=[full]"),
}


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_positions_step_by_step_are_those_of_the_full_pass(name: str) -> None:
    data, *overrides = COUPLED[name]
    model = _model((*overrides, "positions.kind=coupled"), data)
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


LSH = {
    "paper's form": (),
    "duplicates allowed": ("lsh.allow_duplicates=true",),
    "one round": ("lsh.n_hashes=1",),
    "beside local": ("attention=[local,lsh]",),
}


@pytest.mark.usefixtures("one_rotation")
@pytest.mark.parametrize("lengths", [(5,), (0,), (3, 11, 0)], ids=str)
@pytest.mark.parametrize("name", LSH)
def test_hashing_step_by_step_is_the_full_pass_where_one_chunk_holds_the_row(
    name: str, lengths: tuple[int, ...]
) -> None:
    model = _model(("model=reformer", "attention=[lsh]", "lsh.n_buckets=[4]", "lsh.chunk_len=64", *LSH[name]), "stdlib")
    torch.manual_seed(2)  # both draw one rotation a layer
    full = _full(model, lengths, 20)
    torch.manual_seed(2)
    _check_against_full_pass(model, full, lengths, 20)


def test_hashing_with_many_rounds_step_by_step_comes_near_the_full_pass() -> None:
    model = _model(("model=reformer", "attention=[lsh]", "lsh.n_hashes=64", "lsh.chunk_len=8"), "stdlib")
    full = _full(model, (5,), 20).log_softmax(-1)
    tokens = _tokens(1, 25)
    session = CachedSession(PreparedModel(model), 26, 1)
    logits = [session.start([tokens[0, :5].tolist()])] + [session.step(tokens[:, 5 + i]) for i in range(20)]
    distance = (torch.stack(logits, 1).log_softmax(-1) - full[:, 5:26]).abs().mean()
    others = (full[:, 6:26] - full[:, 5:25]).abs().mean()
    assert distance < 0.1 * others


@pytest.mark.parametrize("name", ["transformer", "sparse QKV", "SRU", "everything"])
def test_reordered_rows_go_on_as_what_they_were(name: str) -> None:
    model = _model(DECODERS[name], "stdlib")
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
    prepared = PreparedModel(_model(DECODERS["everything"], "stdlib"))
    first, second = (CachedSession(prepared, 20, 1) for _ in range(2))
    logits = first.start([[3, 4, 5]])
    first.step(torch.tensor([7]))
    assert torch.equal(second.start([[3, 4, 5]]), logits)


@pytest.mark.parametrize(
    ("prompts", "kind"), [([[1] * 40], "too_long"), ([[23]], "bad_token"), ([[-1]], "bad_token")], ids=str
)
def test_a_prompt_that_does_not_fit_is_refused(prompts: list[list[int]], kind: str) -> None:
    session = CachedSession(PreparedModel(_model(DECODERS["transformer"], "stdlib")), 40, 1)
    with pytest.raises(UserError) as error:
        session.start(prompts)
    assert error.value.kind == kind


def test_a_full_row_takes_no_further_token() -> None:
    session = CachedSession(PreparedModel(_model(DECODERS["transformer"], "stdlib")), 3, 1)
    session.start([[1]])
    session.step(torch.tensor([2]))
    with pytest.raises(UserError, match="3 tokens already"):
        session.step(torch.tensor([3]))


def test_more_tokens_than_the_model_has_positions_are_refused() -> None:
    with pytest.raises(UserError, match="64 tokens, and 65"):
        CachedSession(PreparedModel(_model(DECODERS["transformer"], "stdlib")), 65, 1)


def test_caches_beyond_the_memory_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("efftx.decoding.session.free_memory", lambda device: asked.append(device) or 1000)
    with pytest.raises(UserError, match="memory are free") as error:
        CachedSession(PreparedModel(_model(DECODERS["transformer"], "stdlib")), 40, 8)
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
    prepared = PreparedModel(_model(DECODERS[name], "stdlib"))
    needed = CachedSession(prepared, 20, 3).cache_bytes() + table
    monkeypatch.setattr("efftx.decoding.session.free_memory", lambda device: needed)
    CachedSession(prepared, 20, 3)
    monkeypatch.setattr("efftx.decoding.session.free_memory", lambda device: needed - 1)
    with pytest.raises(UserError, match="memory are free"):
        CachedSession(prepared, 20, 3)


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
    prepared = PreparedModel(_model(overrides, "stdlib"))
    prompts = [row[:n].tolist() for row, n in zip(_tokens(len(lengths), max(lengths)), lengths, strict=True)]

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
    model = _model(overrides, "stdlib")
    tokens = _tokens(1, 7)
    torch.manual_seed(2)
    with torch.no_grad():
        expected = model(torch.nn.functional.pad(tokens, (0, 1)))[:, -1]
    torch.manual_seed(2)
    session = CachedSession(PreparedModel(model), capacity, 1)
    assert_close(session.start([tokens[0].tolist()]), expected, ROUNDING, "the prompt")


@pytest.mark.parametrize("length", [8, 20])
def test_rows_that_attend_in_full_in_training_do_so_in_decoding(length: int) -> None:
    """Neither a short capacity nor a short prompt makes a model that hashes attend in full, or the other way round."""
    tokens = _tokens(1, length)
    for full_below in (0, 32, 64):
        # At 64, as long as the rows of this size, nothing is hashed and the keys of hashing are refused.
        hashing = ("lsh.n_hashes=1", "lsh.n_buckets=[8]", "lsh.chunk_len=4") if full_below < 64 else ()
        model = _model(("model=reformer", "attention=[lsh]", f"lsh.full_below={full_below}", *hashing), "stdlib")
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
    prepared = PreparedModel(_model(("model=terraformer", "positions.max_len=128", *hashing), "stdlib"))
    inputs = _tokens(1, 20)

    def logits_of(inputs: Tensor) -> Tensor:
        torch.manual_seed(2)
        session = CachedSession(prepared, 8, 1, inputs)
        return torch.stack([session.start([[4, 5]]), *(session.step(torch.tensor([t])) for t in (6, 7))])

    padded = torch.nn.functional.pad(inputs, (0, n_padding))
    assert_close(logits_of(padded), logits_of(inputs), ROUNDING, "an input with padding")


def test_the_rows_of_a_hashing_generation_say_the_same_after_the_same() -> None:
    prepared = PreparedModel(_model(("model=reformer", "attention=[lsh]", "lsh.chunk_len=4"), "stdlib"))
    session = CachedSession(prepared, 60, 3)
    prompt = _tokens(1, 40)[0].tolist()
    for logits in (session.start([prompt] * 3), session.step(torch.tensor([4, 4, 4]))):
        assert_close(logits, logits[:1].expand(3, -1), ROUNDING, "three rows")


@pytest.mark.parametrize("name", ["transformer", "sparse QKV", "everything"])
def test_a_model_goes_on_training_after_it_was_prepared(name: str) -> None:
    model = _model(DECODERS[name], "stdlib")
    with torch.inference_mode():
        prepared = PreparedModel(model)
    model.train()
    model(_tokens(2, 9), losses=True)[0].mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="prepare it again"):
        CachedSession(prepared, 20, 1)
    model.eval()
    with pytest.raises(RuntimeError, match="prepare it again"):
        CachedSession(prepared, 20, 1)
    full = _full(model, (5,), 8)
    _check_against_full_pass(model, full, (5,), 8)


def test_a_model_may_be_prepared_twice() -> None:
    model = _model(DECODERS["transformer"], "stdlib")
    prepared = [PreparedModel(model), PreparedModel(model, int8=True), PreparedModel(model)]
    first, _, last = (CachedSession(one, 20, 1).start([[3, 4]]) for one in prepared)
    assert torch.equal(first, last)


@pytest.mark.parametrize("change", ["load_state_dict", "to"])
def test_weights_that_were_laid_out_and_then_changed_are_not_decoded_with(change: str) -> None:
    model = _model(DECODERS["sparse QKV"], "stdlib")
    prepared = PreparedModel(model)
    CachedSession(prepared, 20, 1)
    if change == "to":
        model.float()
    else:
        model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="prepare it again"):
        CachedSession(prepared, 20, 1)


def test_a_session_wants_the_models_inputs_one_a_row() -> None:
    decoder = PreparedModel(_model(DECODERS["transformer"], "stdlib"))
    pair = PreparedModel(_model((*PAIRS["cross-attention"], "positions.max_len=64"), "stdlib"))
    for prepared, inputs in ((decoder, INPUTS), (pair, None), (pair, INPUTS[:1]), (pair, INPUTS[:2])):
        with pytest.raises(ValueError, match="inputs"):
            CachedSession(prepared, 20, 3, inputs)
    for capacity, batch in ((0, 1), (20, 0)):
        with pytest.raises(ValueError, match="at least one row"):
            CachedSession(decoder, capacity, batch)


def test_a_step_and_a_new_order_want_one_number_a_row() -> None:
    session = CachedSession(PreparedModel(_model(DECODERS["transformer"], "stdlib")), 20, 2)
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
    session = CachedSession(PreparedModel(_model(overrides, "stdlib")), 20, 3, inputs)
    told = session.cache_bytes()
    session.start([[1], [2], []])
    cores = [cache.core for kept in session._caches for cache in kept if cache.core is not None]
    kept = [core.kv if hasattr(core, "kv") else core for core in cores]
    names = ("k_BHTd", "v_BHTv", "k_BHEd", "v_BHEd")
    slots = [t for one in kept if isinstance(one, SlotCache) for t in one.tensors()]
    arrays = [getattr(one, name) for one in kept for name in names if hasattr(one, name)]
    assert told == sum(t.nbytes for t in (*slots, *arrays))

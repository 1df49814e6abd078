"""With the authors' weights, and their buckets, the model gives the authors' logits, loss and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from efftx.decoding.session import CachedSession, PreparedModel
from efftx.errors import UserError
from efftx.models.author_weights import from_authors, to_authors
from efftx.models.conversion import load_weights
from efftx.models.decoder import Decoder
from efftx.models.encoder_decoder import EncoderDecoder
from efftx.models.weight_rules import Shapes
from efftx.ops.recompute_state import RecomputeState
from efftx.training.step import weighted_mean
from tests.tolerances import CHECKPOINT_LOGITS, GOLDEN, assert_close

LATER_FORM = ("lsh.chunk_len=16", "lsh.attend_across_buckets=true", "lsh.allow_duplicates=true")
SHAPE = ("model=reformer", "d_model=32", "d_ff=64", "n_heads=2", "d_head=16", "n_layers=2", "activation=gelu")
LM = {
    "lsh_axial": (*SHAPE, *LATER_FORM, "lsh.n_hashes=2", "lsh.n_buckets=[8]", "positions.axial_dims=[16,16]"),
    "local_lsh_table": (
        *(*SHAPE, *LATER_FORM, "lsh.n_hashes=4", "lsh.n_buckets=[4,4]"),
        *("attention=[local,lsh]", "local.chunk_len=16", "positions.kind=learned"),
    ),
}
LM["self_fixedbase"] = (
    *("model=reformer", "d_model=32", "d_ff=64", "n_heads=4", "d_head=8", "n_layers=2", "activation=relu"),
    *("attention=[full]", "share_qk=false", "positions.kind=digits"),
    *("positions.start_from_zero=1", "positions.base_dropout=0"),
)
BUCKETS = {"lsh_axial": 8, "local_lsh_table": 16, "self_fixedbase": 1}
SLICES = {"at once": ("chunking.ff=0", "chunking.loss=0"), "in slices": ("chunking.ff=24", "chunking.loss=10")}


def weights_of(arrays: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(f"{prefix}w.")}


def load_from_authors(model: nn.Module, arrays: dict[str, Tensor]) -> None:
    """The authors' arrays into `model`, all of them or none."""
    load_weights(model, from_authors(arrays), None)


def held_buckets(arrays: dict[str, Tensor], n_layers: int, n_buckets: int) -> list[list[RecomputeState]]:
    states = []
    for i in range(n_layers):
        choices: dict[str, Tensor] = {}
        if f"layer{i}.buckets" in arrays:
            bucket = arrays[f"layer{i}.buckets"].long()
            choices["buckets"] = bucket - n_buckets * torch.arange(bucket.shape[2])[:, None]
        states.append([RecomputeState(choices), RecomputeState()])
    return states


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("slices", SLICES)
@pytest.mark.parametrize("name", LM)
def test_a_reformer_has_the_authors_logits_loss_and_gradients(
    golden, build, name: str, slices: str, dtype: torch.dtype
) -> None:
    arrays = golden(f"reformer_lm_{name}", dtype)
    model: Decoder = build(*LM[name], *SLICES[slices], dtype=dtype)
    load_from_authors(model, weights_of(arrays))
    tokens = arrays["tokens"].long()
    logits = model(tokens, states=held_buckets(arrays, 2, BUCKETS[name]))
    assert_close(logits, arrays["logits"], GOLDEN, "logits")
    nll, correct = model(tokens, losses=True, states=held_buckets(arrays, 2, BUCKETS[name]))
    loss = weighted_mean(nll, arrays["loss_weights"])
    loss.backward()
    assert_close(loss, arrays["loss"], GOLDEN, "loss")
    assert torch.equal(correct, arrays["logits"].argmax(-1) == tokens)
    expected = from_authors(weights_of(arrays, "grad_"))
    own = dict(model.named_parameters())
    assert own.keys() == expected.keys()
    for parameter, grad in expected.items():
        assert_close(own[parameter].grad, grad, GOLDEN, parameter)


COPY = (
    "d_model=64",
    "d_ff=128",
    "n_heads=2",
    "d_head=32",
    "n_layers=2",
    "positions.kind=learned",
    "positions.max_len=256",
)
CHECKPOINTS = {
    "reformerlm_copy": (
        *("model=reformer", *(word for word in COPY if word != "d_head=32"), "d_head=64", "activation=gelu"),
        *("attention=[local]", "share_qk=false", "local.chunk_len=64"),
    ),
    "transformerlm_copy": ("model=transformer", *COPY, "activation=relu", "attention_bias=true"),
}
LENGTHS = {"reformerlm_copy": (3, 8, 15), "transformerlm_copy": (3, 8, 12)}
ALWAYS_RIGHT = {"reformerlm_copy": (1, 3, 8, 15), "transformerlm_copy": (1, 3, 5)}


@pytest.fixture(params=CHECKPOINTS)
def trained(request: pytest.FixtureRequest, author_checkpoint, build) -> tuple[str, Decoder, dict[str, Tensor]]:
    name: str = request.param
    arrays = author_checkpoint(name)
    model: Decoder = build(*CHECKPOINTS[name], vocab_size=13, dtype=torch.float32).eval()
    load_from_authors(model, weights_of(arrays))
    return name, model, arrays


def test_a_model_that_the_authors_trained_has_their_logits(trained) -> None:
    name, model, arrays = trained
    for n in LENGTHS[name]:
        tokens, logits = arrays[f"len{n}.tokens"].long(), arrays[f"len{n}.logits"]
        with torch.no_grad():
            torch.testing.assert_close(model(tokens), logits, atol=CHECKPOINT_LOGITS, rtol=CHECKPOINT_LOGITS)
            correct = model(tokens, losses=True)[1]
        assert float(correct[:, n + 2 :].float().mean()) == pytest.approx(float(arrays[f"len{n}.token_accuracy"]))


def test_a_model_that_the_authors_trained_copies_fresh_sequences(trained) -> None:
    name, model, _ = trained
    generator = torch.Generator().manual_seed(0)
    for n in ALWAYS_RIGHT[name]:
        word = torch.randint(1, 12, (64, n), generator=generator)
        zero = torch.zeros(64, 1, dtype=torch.int64)
        with torch.no_grad():
            correct = model(torch.cat([zero, word, zero, word], dim=1), losses=True)[1]
        assert bool(correct[:, n + 2 :].all()), f"words of {n} tokens"


def test_heads_with_biases_and_dense_kernels_are_laid_out_as_linear_layers() -> None:
    kernel, bias = torch.randn(3, 8), torch.randn(8)
    found = from_authors({"w.layer4.attn.q.kernel": kernel, "w.layer4.attn.q.bias": bias})
    assert torch.equal(found["blocks.4.attention.core.project.q.weight"], kernel.T)
    assert torch.equal(found["blocks.4.attention.core.project.q.bias"], bias)
    per_head = torch.randn(2, 3, 4)
    found = from_authors({"w.layer0.attn.w_qk": per_head})
    assert torch.equal(found["blocks.0.attention.core.project.qk.weight"], torch.cat([per_head[0].T, per_head[1].T]))


@pytest.mark.parametrize(
    "name", ["w.layer0.attn.gate", "layer0.attn.w_q", "w.tokens", "w.layerX.ff.w1", "w.layer0.ff.w3"]
)
def test_an_unknown_array_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}'"):
        from_authors({name: torch.zeros(1)})


def test_two_arrays_for_one_weight_are_refused() -> None:
    with pytest.raises(UserError, match="Two of the arrays"):
        from_authors({"w.layer0.attn.w_q": torch.zeros(2, 3, 4), "w.layer0.attn.q.kernel": torch.zeros(3, 8)})


def test_a_missing_array_a_foreign_one_and_another_shape_are_refused(golden, build) -> None:
    arrays = weights_of(golden("reformer_lm_lsh_axial"))
    model = build(*LM["lsh_axial"])
    with pytest.raises(UserError, match=r"Only the model has the weight 'head\.linear\.bias'"):
        load_from_authors(model, {name: array for name, array in arrays.items() if name != "w.loss.bias"})
    with pytest.raises(UserError, match=r"Only the checkpoint has the weight 'blocks\.2\."):
        load_from_authors(model, arrays | {"w.layer2.ff.b1": torch.zeros(64)})
    with pytest.raises(UserError, match=r"has shape \(23, 31\)"):
        load_from_authors(model, arrays | {"w.embedding": torch.zeros(23, 31)})


TERRAFORMER = ("model=terraformer", "data=stdlib", "d_model=32", "d_ff=64", "attention_per_block=1", "chunking.ff=0")
NO_EXTRAS = ("sparse_qkv.S=0", "sparse_loss.S=0", "sru.n_layers=0", "reversible.encoder=merged", "attention_bias=false")
TERRAFORMERS = {
    "terraformer_self_dense": (
        *(*TERRAFORMER, *NO_EXTRAS, "n_heads=4", "n_layers=2", "n_encoder_layers=2", "sparse_ff.N=0"),
        *("attention=[full]", "share_qk=false", "positions.kind=digits"),
    ),
    "terraformer_lsh": (
        *(*TERRAFORMER, *NO_EXTRAS, "n_heads=2", "n_layers=2", "n_encoder_layers=1", "sparse_ff.N=8"),
        *(
            "lsh.n_hashes=2",
            "lsh.n_buckets=[8]",
            "lsh.chunk_len=16",
            "lsh.padding_in_chunks=true",
            "positions.kind=digits",
        ),
    ),
    "terraformer_sparse": (
        *(*TERRAFORMER, "n_heads=4", "n_layers=2", "n_encoder_layers=2", "sparse_ff.N=8", "sparse_qkv.S=4"),
        *("sparse_qkv.encoder=false", "sparse_loss.S=4", "sru.n_layers=1", "sru.d=16"),
        *("attention=[full]", "share_qk=false", "positions.kind=learned", "positions.max_len=32"),
    ),
}
VOCABULARIES = {"terraformer_self_dense": 23, "terraformer_lsh": 23, "terraformer_sparse": 24}


def terraformer_states(
    arrays: dict[str, Tensor], side: str, n_layers: int, n_buckets: int
) -> list[list[RecomputeState]]:
    states = []
    for i in range(n_layers):
        names = [name for name in arrays if name.startswith(f"{side}.layer{i}.") and name.endswith("buckets")]
        choices: dict[str, Tensor] = {}
        for name in names:
            bucket = arrays[name].long()
            choices["buckets"] = bucket - n_buckets * torch.arange(bucket.shape[2])[:, None]
        states.append([RecomputeState(choices), RecomputeState()])
    return states


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TERRAFORMERS)
def test_a_terraformer_has_the_authors_logits_loss_and_gradients(golden, build, name: str, dtype: torch.dtype) -> None:
    arrays = golden(name, dtype)
    inputs, tokens = arrays["tokens_enc"].long(), arrays["tokens_dec"].long()
    lengths = (f"data.length={inputs.shape[1]}", f"data.target_length={tokens.shape[1]}")
    model = build(*TERRAFORMERS[name], *lengths, vocab_size=VOCABULARIES[name], dtype=dtype).eval()
    load_from_authors(model, weights_of(arrays))
    # The encoder's padding has a bucket of its own, the last.
    held = {
        "encoder_states": terraformer_states(arrays, "enc", len(model.encoder_blocks), 9),
        "states": terraformer_states(arrays, "dec", len(model.blocks), 8),
    }
    assert_close(model(tokens, inputs, **held), arrays["logits"], GOLDEN, "logits")
    nll, correct = model(tokens, inputs, losses=True, **held)
    assert torch.equal(correct, arrays["logits"].argmax(-1) == tokens)
    loss = weighted_mean(nll, arrays["loss_weights"])
    loss.backward()
    assert_close(loss, arrays["loss"], GOLDEN, "loss")
    own = dict(model.named_parameters())
    expected = from_authors(weights_of(arrays, "grad_"))
    assert len(expected) > 5
    for parameter, grad in expected.items():
        assert_close(own[parameter].grad, grad, GOLDEN, parameter)


@pytest.fixture
def trained_pair(author_checkpoint, build) -> tuple[EncoderDecoder, dict[str, Tensor]]:
    """The authors' encoder-decoder for the copy task, and the arrays that came with it."""
    arrays = author_checkpoint("transformer_copy")
    model = build(
        *("model=scaling", "data=stdlib", "sparse_ff.N=0", "sparse_qkv.S=0", "n_layers=2", "n_encoder_layers=2"),
        *("d_model=64", "d_ff=128", "n_heads=2", "positions.max_len=256"),
        vocab_size=13,
        dtype=torch.float32,
    ).eval()
    load_from_authors(model, weights_of(arrays))
    return model, arrays


def test_the_encoder_decoder_that_the_authors_trained_has_their_logits(trained_pair) -> None:
    model, arrays = trained_pair
    for n in (4, 16, 40):
        tokens = arrays[f"len{n}.tokens"].long()
        with torch.no_grad():
            found = model(tokens, tokens)
        torch.testing.assert_close(found, arrays[f"len{n}.logits"], atol=CHECKPOINT_LOGITS, rtol=CHECKPOINT_LOGITS)
        right = found.argmax(-1)[tokens > 0] == tokens[tokens > 0]
        assert float(right.float().mean()) == pytest.approx(float(arrays[f"len{n}.token_accuracy"]))


def test_the_encoder_decoder_that_the_authors_trained_copies_fresh_sequences(trained_pair) -> None:
    model, _ = trained_pair
    generator = torch.Generator().manual_seed(0)
    for n in (1, 8, 30, 60):
        word = torch.randint(2, 12, (64, n), generator=generator)
        with torch.no_grad():
            assert bool(model(word, word, losses=True)[1].all()), f"words of {n} tokens"


MODELS = {
    "reformer_lm_lsh_axial": Shapes(2),
    "reformer_lm_local_lsh_table": Shapes(2),
    "reformer_lm_self_fixedbase": Shapes(4),
    "terraformer_lsh": Shapes(2, 8),
    "terraformer_self_dense": Shapes(4),
    "terraformer_sparse": Shapes(4, 8),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_authors_arrays_come_back_under_their_names_and_in_their_layouts(golden, name: str) -> None:
    arrays = weights_of(golden(name))
    back = to_authors(from_authors(arrays), MODELS[name])
    assert back.keys() == arrays.keys()
    for name_there, array in arrays.items():
        assert torch.equal(back[name_there].reshape(array.shape), array), name_there


LAYER, PROJECT = "w.dec.layer1.", "core.project."


@pytest.mark.parametrize(
    ("theirs", "shape", "ours"),
    [
        ("attn0.w_q", (2, 6, 3), "attention." + PROJECT + "q.weight"),
        ("attn1.w_q", (2, 6, 3), "attention_2." + PROJECT + "q.weight"),
        ("attn1.ln.scale", (6,), "attention_2.norm.weight"),
        ("attn0.conv_qk.kernel", (3, 3, 2, 2), "attention." + PROJECT + "qk.kernel"),
        ("attn1.conv_qk.bias", (2,), "attention_2." + PROJECT + "qk.bias"),
        ("attn0.qk.kernel", (6, 6), "attention." + PROJECT + "qk.weight"),
        ("attn0.b_qk", (2, 3), "attention." + PROJECT + "qk.bias"),
        ("attn0.out_mult.gate", (3, 6), "attention." + PROJECT + "o.multiplicative.gate"),
        ("attn0.out_conv.kernel", (3, 3, 2, 2), "attention." + PROJECT + "o.convolution.kernel"),
        ("attn0.out_conv.bias", (2,), "attention." + PROJECT + "o.convolution.bias"),
    ],
)
def test_everything_that_a_preset_can_be_has_a_name(theirs: str, shape: tuple[int, ...], ours: str) -> None:
    assert list(from_authors({LAYER + theirs: torch.zeros(shape)})) == [f"blocks.1.{ours}"]


def test_a_dense_output_behind_sparse_queries_is_another_weight_than_that_of_dense_attention() -> None:
    kernel, gate = {"w.layer0.attn.o.kernel": torch.zeros(6, 6)}, {"w.layer0.attn.mult.gate": torch.zeros(3, 6)}
    assert "blocks.0.attention.core.project.o.weight" in from_authors(kernel)
    assert "blocks.0.attention.core.project.o.dense.weight" in from_authors(kernel | gate)


SECOND = (
    *(
        "model=terraformer",
        "data=stdlib",
        "attention_per_block=2",
        "n_layers=2",
        "n_encoder_layers=2",
        "d_model=32",
        "d_ff=64",
    ),
    *("n_heads=4", "sparse_ff.N=8", "sparse_loss.S=4", "sru.d=16", "sparse_qkv.S=4"),
)


@pytest.mark.parametrize("output", ["none", "dense", "multiplicative", "convolution", "multiplicative_convolution"])
@pytest.mark.parametrize("share_qk", ["false", "true"])
def test_two_attention_layers_a_block_go_out_and_come_back(build, output: str, share_qk: str) -> None:
    """Terraformer's decoder; the authors' two layers of a block are called attn0 and attn1."""
    own = (f"sparse_qkv.output={output}", f"share_qk={share_qk}", "attention=[full]")
    model = build(*SECOND, *own, vocab_size=24)
    weights = {name: w.detach() for name, w in model.named_parameters()}
    arrays = to_authors(weights, Shapes(4, 8))
    assert any(".attn0." in name for name in arrays)
    assert any(".attn1." in name for name in arrays)
    back = from_authors(arrays)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())


def test_a_weight_that_the_authors_have_not_is_not_exported() -> None:
    with pytest.raises(UserError, match=r"'blocks\.0\.feedforward\.core\.b1'"):
        to_authors({"blocks.0.feedforward.core.b1": torch.zeros(8)}, Shapes())


def test_an_array_of_another_number_of_axes_is_refused_by_its_name_and_shape() -> None:
    with pytest.raises(UserError, match=r"'w\.layer0\.attn\.w_q' has shape \(6, 6\)"):
        from_authors({"w.layer0.attn.w_q": torch.zeros(6, 6)})


def test_where_the_last_weight_does_not_fit_nothing_is_overwritten(golden, build) -> None:
    arrays, model = weights_of(golden("reformer_lm_lsh_axial")), build(*LM["lsh_axial"])
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    with pytest.raises(UserError, match="has shape"):
        load_from_authors(model, {**arrays, "w.loss.bias": torch.zeros(7)})
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())


def test_a_missing_array_of_sparse_logits_is_a_message(golden, build) -> None:
    arrays = weights_of(golden("terraformer_sparse"))
    lengths = ("data.length=16", "data.target_length=16")
    model = build(*TERRAFORMERS["terraformer_sparse"], *lengths, vocab_size=24)
    with pytest.raises(UserError, match=r"Only the model has the weight 'head\.linear\.layer\.bias'"):
        load_from_authors(model, {name: array for name, array in arrays.items() if name != "w.loss.bias"})


def decoded_logits(model: Decoder | EncoderDecoder, tokens: Tensor, inputs: Tensor | None = None) -> Tensor:
    """The logits (B, L, V) of a generation from caches that is given these tokens one after another."""
    session = CachedSession(PreparedModel(model), tokens.shape[1], len(tokens), inputs)
    logits = [session.start([[]] * len(tokens))]
    logits += [session.step(tokens[:, t]) for t in range(tokens.shape[1] - 1)]
    return torch.stack(logits, 1)


def test_a_reformer_decoded_from_caches_has_the_authors_logits(golden, build) -> None:
    arrays = golden("reformer_lm_self_fixedbase", torch.float32)
    model = build(*LM["self_fixedbase"], dtype=torch.float32).eval()
    load_from_authors(model, weights_of(arrays))
    assert_close(decoded_logits(model, arrays["tokens"].long()), arrays["logits"], GOLDEN, "logits")


@pytest.mark.parametrize("name", ["terraformer_self_dense", "terraformer_sparse"])
def test_a_terraformer_decoded_from_caches_has_the_authors_logits(golden, build, name: str) -> None:
    arrays = golden(name, torch.float32)
    inputs, tokens = arrays["tokens_enc"].long(), arrays["tokens_dec"].long()
    lengths = (f"data.length={inputs.shape[1]}", f"data.target_length={tokens.shape[1]}")
    model = build(*TERRAFORMERS[name], *lengths, vocab_size=VOCABULARIES[name], dtype=torch.float32).eval()
    load_from_authors(model, weights_of(arrays))
    assert_close(decoded_logits(model, tokens, inputs), arrays["logits"], GOLDEN, "logits")


def test_models_that_the_authors_trained_decode_from_caches_to_their_logits(trained, trained_pair) -> None:
    name, model, arrays = trained
    tolerance = {"atol": CHECKPOINT_LOGITS, "rtol": CHECKPOINT_LOGITS}
    n = LENGTHS[name][-1]
    found = decoded_logits(model, arrays[f"len{n}.tokens"].long())
    torch.testing.assert_close(found, arrays[f"len{n}.logits"], **tolerance)
    pair, arrays = trained_pair
    tokens = arrays["len40.tokens"].long()
    torch.testing.assert_close(decoded_logits(pair, tokens, tokens), arrays["len40.logits"], **tolerance)

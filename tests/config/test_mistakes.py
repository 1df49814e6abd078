"""Mistakes in overrides are told with their kind and the way out."""

from __future__ import annotations

import pytest

from efftx.config.compose import compose
from efftx.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "kind", "says"),
    [
        (["lsh.n_hash=3"], "unknown_key", "lsh.n_hashes"),
        (["model=transfomer"], "unknown_model", "transformer"),
        (["data=enwik"], "unknown_data", "enwik8"),
        (["size=huge"], "unknown_size", "smoke"),
        (["preset=reformer/enwik8_2021"], "unknown_preset", "reformer/enwik8_2020"),
        (["d_model=wide"], "bad_type", "d_model=wide is not a whole number."),
        (["d_model=null"], "bad_type", "is not a whole number"),
        (["d_model=true"], "bad_type", "is not a whole number"),
        (["sparse_ff={N: many}"], "bad_type", "sparse_ff.N=many is not a whole number."),
        (["lsh.n_buckets=[a]"], "bad_type", "lsh.n_buckets=[a] is not a whole number."),
        (["attention=lsh"], "bad_type", "Write 'attention=[lsh]'."),
        (["data.path=[a,b]"], "bad_type", "is not text"),
        (["reversible.enabled=null"], "bad_type", "neither true nor false"),
        (["n_layers=1.5"], "bad_type", "whole number"),
        (["optimizer.lr=fast"], "bad_type", "Write a number, such as optimizer.lr=0.5."),
        (["lsh=3"], "bad_type", "--package lsh"),
        (["lsh.n_hashes=1,2"], "sweep", "efftx ablate"),
        (["d_model=[1"], "bad_override", "'d_model=[1' cannot be read."),
        (["just_a_word"], "bad_override", "key=value"),
        (["lsh.n_hashes", "=", "4"], "bad_override", "Write lsh.n_hashes=4, without a space."),
        (["lsh.n_hashes=", "4"], "bad_override", "Write lsh.n_hashes=4, without a space."),
        (["lsh.n_hashes", "=4"], "bad_override", "Write lsh.n_hashes=4, without a space."),
        (["model", "reformer"], "bad_override", "Write model=reformer, without a space."),
        (["steps=3"], "unknown_key", "'schedule.steps' or 'training.steps'"),
        (["~d_model"], "bad_override", "d_model"),
        (["model=transformer", "lsh.n_hashes=2"], "dead_key", "attention"),
        (["share_qk=false"], "dead_key", "always shares"),
        (["attention=[lsh,identity]", "share_qk=false"], "dead_key", "always shares"),
        (["model=transformer", "attention=[identity]", "share_qk=true"], "dead_key", "no layer attends"),
        (["model=transformer", "attention=[identity]", "attention_dropout=0.5"], "dead_key", "no layer attends"),
        (["model=transformer", "attention=[fixed]", "fixed.mode=first", "fixed.c=2"], "dead_key", "no summaries"),
        (
            ["model=transformer", "attention=[fixed]", "fixed.mode=first", "fixed.sub_blocks=2"],
            "dead_key",
            "no summaries",
        ),
        (["tracker.wandb=true", "tracker.group=1e-3"], "bad_type", "would be read as 0.001"),
        (["model=transformer", "reversible.merge=mean"], "dead_key", "reversible.enabled"),
        (["positions.kind=learned", "positions.axial_dims=[1,2]"], "dead_key", "axial"),
        (["tracker.project=x"], "dead_key", "tracker.wandb"),
        (["distributed.offload=true"], "dead_key", "not fsdp"),
        (["distributed.strategy=fsdp", "dtype=float16"], "bad_value", "bfloat16"),
        (["optimizer.weight_decay=0.1"], "dead_key", "adamw"),
        (["schedule.name=constant", "schedule.steps=10"], "dead_key", "no end"),
        (["d_model=260", "n_heads=3", "d_head=null", "positions.kind=learned"], "bad_value", "=258 or d_model=261"),
        (["d_model=2", "n_heads=4", "d_head=null"], "bad_value", "Take d_model=4, or"),
        (["d_model=33"], "bad_value", "positions.axial_dims=[8,25]"),
        (["data=glue"], "bad_objective", "model=scaling or model=terraformer"),
        (["lsh.n_buckets=[3]"], "bad_value", "even number"),
        (["lsh.n_buckets=[0]"], "bad_value", "even number"),
        (["lsh.n_buckets=[4096,2048]"], "bad_value", "at most 4194302 buckets a round"),
        (["lsh.n_buckets=[4096,1024]", "lsh.n_hashes=2"], "bad_value", "2 rounds of 4194304 buckets"),
        (["positions.axial_shape=[4,4]"], "bad_value", "16 positions"),
        (["positions.axial_dims=[4,4]"], "bad_value", "add up to 8"),
        (["positions.axial_shape=[1024]"], "bad_value", "one positive entry"),
        (["positions.kind=learned", "positions.max_len=8"], "bad_value", "data.length"),
        (["attention=[]"], "bad_value", "no kind"),
        (["attention=[lsh,lokal]"], "bad_value", "local"),
        (["activation=rely"], "bad_value", "relu"),
        (["dropout=1"], "bad_value", "less than 1"),
        (["training.batch_size=0"], "bad_value", "at least 1"),
        (["threads=0"], "bad_value", "at least 1"),
        (["checkpoint.every=-1"], "bad_value", "negative"),
        (["checkpoint.keep=0"], "bad_value", "at least 1"),
        (["optimizer.lr=0"], "bad_value", "above 0"),
        (["optimizer.betas=[0.9,1.0]"], "bad_value", "less than 1"),
        (["optimizer.betas=[0.9]"], "bad_value", "two numbers"),
        (["schedule.warmup=-1"], "bad_value", "negative"),
        (["seed=-1"], "bad_value", "negative"),
        (["tie_embeddings=true"], "bad_value", "reversible.merge=mean"),
        (["stack=encoder"], "bad_value", "decoder"),
        (["objective=span"], "bad_value", "span_corruption"),
        (["n_encoder_layers=3"], "dead_key", "no encoder"),
        (["model=terraformer", "lsh.n_hashes=4"], "dead_key", "lsh.full_below=1024"),
        (["model=terraformer", "lsh.n_hashes=4", "lsh.full_below=256"], "dead_key", "lsh.full_below=256"),
        (["sparse_ff.rank=4"], "dead_key", "sparse_ff.N is 0"),
        (["sru.d=4"], "dead_key", "sru.n_layers is 0"),
        (["d_ff_rule=equal"], "dead_key", "dense"),
        (["d_ff_rule=same"], "bad_value", "equal"),
        (["sparse_ff.N=5"], "bad_value", "blocks"),
        (["sparse_ff.N=4", "sparse_ff.quant_prob=2"], "bad_value", "quant_prob"),
        (["sparse_ff.N=4", "activation=gelu"], "dead_key", "always relu"),
        (["sparse_ff.N=4", "init.weights=0.1"], "dead_key", "not reach the sparse layers"),
        (["model=scaling", "sparse_qkv.S=4", "init.weights=0.1"], "dead_key", "not reach the sparse layers"),
        (["model=terraformer", "data=copy_add", "objective=lm"], "bad_value", "no input"),
        (["model=scaling", "data=duplicate"], "bad_objective", "lm"),
        (["model=scaling", "tie_embeddings=true", "sparse_loss.S=4"], "bad_value", "sparse_loss"),
        (["model=scaling", "d_head=8", "sparse_qkv.S=8"], "bad_value", "d_head"),
        (["model=scaling", "stack=decoder", "sparse_qkv.cross=query"], "dead_key", "cross-attention"),
        (["model=scaling", "reversible.encoder=merged"], "dead_key", "reversible.enabled"),
        (["data.n_symbols=3"], "unknown_key", "data.n_symbols"),
        (["optimizer.name=adamm"], "bad_value", "adam"),
        (["schedule.name=cosin"], "bad_value", "cosine"),
        (["dtype=float8"], "bad_value", "float"),
        (["data=c4", "data.tokenizer=foo"], "bad_value", "data.tokenizer=foo is not a tokenizer"),
        (["model=scaling", "data=summarization", "data.corpus=foo"], "bad_value", "data.corpus=foo is not a corpus"),
        (["model=scaling", "data=summarization", "data.tokenizer=foo"], "bad_value", "not a tokenizer"),
        (["model=scaling", "data=wmt14", "data.source=english"], "bad_value", "no language"),
        (["model=scaling", "data=wmt14", "data.source=de"], "bad_value", "are both de"),
        (["data=imagenet64", "data.edition=foo"], "bad_value", "chrabaszcz2017"),
        (["data=imagenet64", "data.side=65"], "bad_value", "64 pixels"),
        (["data=cifar10", "data.side=64"], "bad_value", "32 pixels"),
        (["data=enwik8", "data.n_bytes=5"], "bad_value", "is not known"),
        (["data=enwik8", "data.extra=wiki"], "bad_value", "enwiki2016"),
        (["evaluation.stop_at_accuracy=99", "evaluation.every=0"], "bad_value", "there is none before the end"),
        (["evaluation.beam=4"], "dead_key", "no text is generated"),
        (["model=scaling", "data=glue", "evaluation.beam=4"], "dead_key", "no text is generated"),
        (["evaluation.beam=4", "evaluation.length_penalty=1"], "dead_key", "no text is generated"),
        (["device=tpu"], "bad_value", "cpu"),
    ],
)
def test_a_mistake_is_told_with_its_kind_and_the_way_out(overrides: list[str], kind: str, says: str) -> None:
    if not any(word.startswith("model=") for word in overrides):
        overrides = ["model=reformer", *overrides]
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert caught.value.kind == kind
    assert says in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (["sparse_ff.rank=4"], "Leave sparse_ff.rank out, or switch its mechanism on."),
        (["reversible.merge=mean"], "Leave reversible.merge out, or switch its mechanism on."),
        (["evaluation.length_penalty=1"], "Leave evaluation.length_penalty out."),
        (["lsh.n_hashes=2"], "Leave lsh.n_hashes out."),
        (["data.target_length=8"], "Leave data.target_length out."),
        (["evaluation.beam=4"], "Leave evaluation.beam out."),
        (
            ["attention=[lsh]", "lsh.n_hashes=2", "lsh.full_below=9000"],
            "Leave lsh.n_hashes out, or set lsh.full_below=0 beside it, or a larger data.length.",
        ),
    ],
)
def test_the_way_out_of_a_dead_key_is_one(overrides: list[str], hint: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["model=transformer", *overrides])
    assert caught.value.hint == hint

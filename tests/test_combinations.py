"""Values of the right type: what they cannot mean together is refused at composition; what composes also trains."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from efftx.cli import main
from efftx.config.compose import compose
from efftx.errors import UserError
from efftx.training.loop import train

SHORT = ["size=smoke", "schedule.warmup=1", "training.steps=2", "training.batch_size=2", "evaluation.batches=1"]
DIGITS = ["data=copy_add", "data.length=24", "data.max_digits=8", "data.eval_min_digits=10", "data.eval_max_digits=20"]
BASES = {
    "reformer": ["model=reformer", "data=duplicate"],
    "transformer": ["model=transformer", "data=duplicate"],
    "terraformer": ["model=terraformer"],
    "scaling": ["model=scaling", *DIGITS],
    "sparse_transformer": ["model=sparse_transformer"],
}
IMPOSSIBLE = [
    ("transformer", "d_model=33 d_head=null positions.kind=none", "divisible"),
    ("transformer", "n_heads=1000 d_head=null", "n_heads"),
    ("transformer", "d_head=0", "at least 1"),
    ("transformer", "optimizer.lr=0", "above 0"),
    ("transformer", "optimizer.lr=-1", "above 0"),
    ("transformer", "optimizer.eps=0", "optimizer.eps"),
    ("transformer", "optimizer.betas=[0.9,1]", "less than 1"),
    ("transformer", "optimizer.betas=[0.9]", "two numbers"),
    ("transformer", "optimizer.betas=[-0.1,0.9]", "negative"),
    ("transformer", "optimizer.name=adamw optimizer.weight_decay=-0.1", "negative"),
    ("transformer", "dropout=1.0", "less than 1"),
    ("transformer", "checkpoint.keep=0", "at least 1"),
    ("transformer", "checkpoint.every=-1", "negative"),
    ("transformer", "evaluation.batches=0", "no end"),
    ("transformer", "evaluation.every=-1", "negative"),
    ("transformer", "evaluation.stop_at_accuracy=101", "at most 100"),
    ("transformer", "schedule.warmup=2", "schedule.warmup"),
    ("transformer", "schedule.name=rsqrt schedule.floor=1", "schedule.floor"),
    ("transformer", "data.length=5", "even"),
    ("transformer", "data.length=2", "even"),
    ("transformer", "data.n_symbols=1", "at least 2"),
    ("transformer", "positions.kind=learned positions.max_len=8", "data.length"),
    ("transformer", "positions.kind=digits positions.n_digits=3", "does not divide"),
    ("transformer", "positions.kind=digits positions.n_digits=1", "digits in base"),
    ("transformer", "positions.kind=digits positions.bases=[1]", "at least 2"),
    ("transformer", "positions.kind=sinusoidal d_model=33 d_head=8", "even d_model"),
    ("transformer", "sparse_loss.S=100", "vocabulary of 128"),
    ("transformer", "training.accumulation=0", "at least 1"),
    ("transformer", "attention=[strided] strided.stride=65", "longer than a row"),
    ("transformer", "attention=[strided] strided.mode=both", "not known"),
    ("transformer", "attention=[strided] strided.stride=-1", "negative"),
    ("transformer", "attention=[strided] strided.mode=heads n_heads=1 d_head=8", "divisible by 2"),
    ("transformer", "attention=[fixed] fixed.stride=8 fixed.c=9", "do not fit"),
    ("transformer", "attention=[fixed] fixed.stride=8 fixed.c=3 fixed.sub_blocks=3 n_heads=3 d_head=8", "do not fit"),
    ("transformer", "attention=[fixed] fixed.stride=8 fixed.c=2 fixed.sub_blocks=4", "divisible by 4"),
    ("transformer", "attention=[fixed] fixed.sub_blocks=2 fixed.mode=heads", "divisible by 4"),
    ("transformer", "attention=[fixed] strided.stride=8", "no layer's attention is strided"),
    ("transformer", "attention=[local] local.window=8 local.chunk_len=8", "takes the place"),
    ("reformer", "lsh.n_buckets=[3]", "even number"),
    ("reformer", "lsh.chunk_len=0", "at least 1"),
    ("reformer", "positions.axial_shape=[4,4]", "16 positions"),
    ("sparse_transformer", "data=photos data.side=8 positions.axial_shape=[4,4,3]", "48 positions, and a row has 192"),
    ("reformer", "positions.axial_dims=[1,2]", "add up to 3"),
    ("reformer", "positions.axial_shape=[64]", "one positive entry"),
    ("terraformer", "data.target_length=5", "too small"),
    ("terraformer", "data.noise=0", "above 0"),
    ("terraformer", "data.noise=1", "below 1"),
    ("terraformer", "data.noise=0.9 data.mean_span=1", "fewer tokens"),
    ("terraformer", "data.mean_span=0.5", "at least 1"),
    ("terraformer", "data.length=1", "too short"),
    ("terraformer", "sparse_ff.N=4 d_ff_rule=given d_ff=127", "blocks"),
    ("terraformer", "sparse_qkv.S=5", "not divisible"),
    ("terraformer", "sparse_qkv.S=4 d_ff_rule=authors", "they name no d_ff"),
    ("terraformer", "sparse_ff.N=4 sparse_ff.quant_prob=1.5", "at most 1"),
    ("scaling", "data.base=1", "from 2 to 10"),
    ("scaling", "data.min_digits=9", "no range"),
    ("scaling", "data.eval_max_digits=30", "too short"),
    ("scaling", "data.task=multiply", "not a task"),
]
EXTREME = [
    ("transformer", "positions.kind=none d_model=1 n_heads=1 d_head=1 d_ff=1 dropout=0.999 attention_dropout=0.999"),
    ("transformer", "attention=[local,full] local.chunk_len=1 full.query_block=1"),
    ("transformer", "attention=[local] local.chunk_len=1000 chunking.ff=100000"),
    ("transformer", "attention=[local,strided] local.window=1000 strided.stride=1 strided.mode=merged"),
    ("transformer", "attention=[fixed] fixed.stride=64 fixed.c=64 attention_dropout=0.5"),
    ("transformer", "attention=[fixed,strided] fixed.stride=1 fixed.mode=second share_qk=true"),
    ("scaling", "attention=[strided,fixed] strided.mode=heads fixed.c=1 share_qk=true"),
    ("transformer", "data.length=4 training.batch_size=5 chunking.loss=1 chunking.ff=7"),
    ("transformer", "optimizer.betas=[0,0] optimizer.eps=1e-30 training.clip_norm=1e-300"),
    ("transformer", "schedule.name=rsqrt schedule.floor=1000000000000 schedule.warmup=1000"),
    (
        "transformer",
        "evaluation.every=1000000000000 checkpoint.keep=1000000 seed=9223372036854775807",
    ),
    ("transformer", "positions.kind=digits positions.bases=[2] positions.n_digits=8 positions.base_dropout=1"),
    ("transformer", "training.steps=0 schedule.name=constant schedule.warmup=0"),
    ("reformer", "lsh.chunk_len=1 lsh.n_hashes=3"),
    ("reformer", "lsh.chunk_len=7 lsh.n_buckets=[2,2]"),
    ("reformer", "lsh.chunk_len=1000 lsh.n_buckets=[64,64] lsh.allow_duplicates=true"),
    ("reformer", "lsh.full_below=100000 dtype=float64"),
    ("reformer", "positions.axial_shape=[1,64] data.length=62"),
    ("terraformer", "sparse_ff.N=1 sparse_qkv.S=1 sparse_loss.S=1 sru.n_layers=2 sru.d=1"),
    ("terraformer", "sparse_ff.N=8 sparse_ff.temperature=1e-40 sparse_ff.quant_prob=1 d_ff_rule=given"),
    ("terraformer", "data.length=3 data.noise=0.5 data.mean_span=1e9 attention_per_block=3"),
    (
        "terraformer",
        "n_encoder_layers=1 reversible.merge=mean reversible.encoder=merged lsh.n_buckets=[1024]",
    ),
    ("scaling", "sparse_qkv.S=32 sparse_qkv.F=99 sparse_qkv.cross=query"),
    ("scaling", "sparse_qkv.S=4 sparse_qkv.variant=low_rank sparse_qkv.rank=1000 data.base=2 data.task=add"),
]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNS", "RESULTS", "DATA"):
        monkeypatch.setenv(f"EFFTX_{name}", str(tmp_path / name.lower()))
    # What a finished training tells of decoding is no part of this.
    monkeypatch.setattr("efftx.training.loop.latency_of", lambda *arguments: {})


@pytest.mark.parametrize(("base", "words", "says"), IMPOSSIBLE, ids=[f"{b}: {w}" for b, w, _ in IMPOSSIBLE])
def test_what_cannot_be_is_refused_at_composition(base: str, words: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([*SHORT, *BASES[base], *words.split()])
    assert says in caught.value.message


@pytest.mark.parametrize(("base", "words"), EXTREME, ids=[f"{b}: {w}" for b, w in EXTREME])
def test_what_composes_trains(base: str, words: str) -> None:
    result = train(compose([*SHORT, *BASES[base], *words.split()]), silent=True)
    assert math.isfinite(result.metrics["loss"])


@pytest.mark.parametrize("words", [["device=cuda"], ["device=cuda:0"], ["device=cuda:99"], ["dtype=float16"]])
@pytest.mark.parametrize("command", ["train", "ablate"])
def test_what_this_machine_has_not_is_told_before_anything_is_written(
    command: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([command, *SHORT, *BASES["transformer"], *words]) == 2
    assert words[0].partition("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("what", ["file", "folder", "pipe", "nothing"])
@pytest.mark.parametrize(
    "words",
    [
        ["train", "data=enwik8", "data.path=PLACE"],
        ["train", "data=text", "data.path=PLACE"],
        ["train", "data=jsonl", "data.path=PLACE"],
        ["train", "model=scaling", "data=summarization", "data.path=PLACE"],
        ["train", "model=scaling", "data=glue", "data.path=PLACE"],
        ["train", "data=c4", "data.path=PLACE"],
        ["train", "data=c4", "data.path=efftx:samples/c4", "data.tokenizer=unigram", "data.tokenizer_path=PLACE"],
        ["train", "data=duplicate", "pretrained=PLACE"],
        ["plan", "--config-dir", "PLACE", "model=place/mine"],
        ["sample", "PLACE"],
        ["report", "reformer/table2", "EFFTX_EXPERIMENTS"],
    ],
    ids=lambda words: " ".join(words),
)
def test_another_kind_of_thing_than_was_wanted_is_one_message(
    words: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    if what == "file":
        place.write_bytes(b"\x00\xff" * 50)
    elif what == "folder":
        place.mkdir()
        (place / "train").mkdir()
        (place / "config.json").mkdir()
    elif what == "pipe":
        os.mkfifo(place)
    if words[-1] == "EFFTX_EXPERIMENTS":
        if what == "folder":
            (place / "own.yaml").mkdir()
        monkeypatch.setenv("EFFTX_EXPERIMENTS", str(place))
    family = [] if words[0] != "train" or any(w.startswith("model=") for w in words) else ["model=transformer"]
    words = [words[0], *(["size=smoke", *family] if words[0] in ("train", "plan") else []), *words[1:]]
    # A folder is what EFFTX_EXPERIMENTS wants: the directory in it that is called own.yaml stops its own item alone.
    words = ["report", "place/own"] if words[-1] == "EFFTX_EXPERIMENTS" and what == "folder" else words
    code = main([word.replace("PLACE", str(place)) for word in words if word != "EFFTX_EXPERIMENTS"])
    assert code == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "place" in told


@pytest.mark.parametrize("root", ["RUNS", "DATA"])
def test_a_file_where_a_root_should_be_is_one_message(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "root"
    place.write_text("a file")
    monkeypatch.setenv(f"EFFTX_{root}", str(place))
    assert main(["train", *SHORT, "model=transformer"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert str(place) in told


@pytest.mark.parametrize("file", ["config.json", "result.json"])
def test_json_nested_without_end_in_a_run_is_one_message(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", *SHORT, *BASES["transformer"], f"run_dir={run}"]) == 0
    (run / file).write_text('{"a": ' + "[" * 200_000)
    for words in (["train", *SHORT, *BASES["transformer"], f"pretrained={run}"], ["sample", str(run)]):
        capsys.readouterr()
        code = main(words)
        told = capsys.readouterr().err
        assert "Traceback" not in told
        if words[0] == "train" or file == "config.json":
            assert code == 2
            assert str(run / file) in told

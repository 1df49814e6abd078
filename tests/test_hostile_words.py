"""Command lines that nobody means: every one is answered with a sentence and exit code 2, and nothing is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efftx.cli import main

LONG = "x" * 100_000
NEVER = [
    "",
    " ",
    "=",
    "==",
    "=1",
    "a=b=c",
    "d_model",
    "d_model==64",
    "d_model=64=64",
    "d_model =64",
    "d_model.x=1",
    ".d_model=64",
    "d_model.=64",
    "lsh..n_hashes=4",
    "lsh=4",
    "lsh={}=",
    "lsh={n_hashes:four}",
    "lsh={nothing:4}",
    "data={name:enwik8}",
    "Config=1",
    "__class__=1",
    "d-model=64",
    "D_MODEL=64",
    "ключ=1",
    "d_model=٦٤",
    "d_model=²",
    "d_model=½",
    "d_model=\u202e46",
    "d_model=\x00",
    "d_model=\\x00",
    "d_model=\x1b[31m64",
    "d_model=64\n",
    "d_model=\t",
    "d_model='64",
    'd_model="64',
    "d_model=[64",
    "d_model=64]",
    "d_model={64",
    "d_model=(64",
    "d_model=[64]",
    "d_model={a:64}",
    "d_model=64.0",
    "d_model=6e1",
    "d_model=0x40",
    "d_model=6_4,",
    "d_model=,",
    "d_model=1,2",
    "d_model=range(1,3)",
    "d_model=glob(*)",
    "d_model=choice(1,2)",
    "d_model=interval(1,2)",
    "d_model=sort(3,2)",
    "d_model=int(x)",
    "d_model=str([1",
    "d_model=${}",
    "d_model=${",
    "d_model=${nope}",
    "d_model=${oc.env:EFFTX_NOT_SET}",
    "d_model=${oc.nope:1}",
    "d_model=${d_model}",
    "d_model=${by_size:1}",
    "d_model=1e400",
    "d_model=" + "9" * 5000,
    "d_model=-" + "9" * 30,
    f"d_model={LONG}",
    f"{LONG}=1",
    "d_model=" + "[" * 500,
    "attention=" + "[" * 300 + "]" * 300,
    "++d_model=a",
    "~d_model",
    "~lsh",
    "~model",
    "@d_model=64",
    "model@x=reformer",
    "model=",
    "model=null",
    "model=[]",
    "model=../../etc/passwd",
    "model=/etc/passwd",
    "model=reformer/",
    "model={}",
    "size=",
    "size=huge",
    "data=enwik8/..",
    "data=[enwik8]",
    "data=duplicate.yaml",
    "preset=",
    "preset=reformer",
    "preset=../reformer/cpu",
    "preset=reformer/cpu/x",
    "preset@_global_=x",
    "hydra=1",
    "hydra.run.dir=[",
    "hydra/launcher=nope",
    "hydra.nope=1",
    "defaults=[]",
    "schema=1",
    "train=1",
    "seed=nan",
    "seed=-1",
    "seed=1.5",
    "seed=true",
    "seed=18446744073709551616",
    "threads=0",
    "threads=-1",
    "threads=many",
    "dtype=float8",
    "device=tpu",
    "run_dir=",
    "pretrained=",
    "pretrained=/nowhere",
    "attention=full",
    "attention=[]",
    "attention=[[full]]",
    "attention=[full,]x",
    "attention=[1]",
    "attention=[null]",
    "attention={full:1}",
    "betas=[1]",
    "optimizer.betas=[0.9]",
    "optimizer.betas=[a,b]",
    "optimizer.betas=0.9",
    "optimizer.lr=[0.1]",
    "optimizer.lr=fast",
    "optimizer.lr=nan",
    "optimizer.lr=inf",
    "optimizer.lr=-0",
    "optimizer=adam",
    "schedule=cosine",
    "tracker=true",
    "reversible=true",
    "reversible.enabled=maybe",
    "--",
    "-",
    "---",
    "-x",
    "--d_model=64",
    "--json=1",
    "--config-dir",
    "--config-dir=/nowhere",
    "--help=1",
    "-1",
    "-m",
]
NOT_NULL = [
    "n_layers",
    "d_model",
    "d_ff",
    "n_heads",
    "dropout",
    "attention",
    "lsh.n_hashes",
    "lsh",
    "lsh.n_buckets",
    "positions.kind",
    "seed",
    "dtype",
    "device",
    "compile",
    "training.steps",
    "training.batch_size",
    "optimizer.lr",
    "optimizer.betas",
    "schedule.name",
    "evaluation.every",
    "checkpoint.keep",
    "tracker.wandb",
    "stack",
    "objective",
    "share_qk",
    "sparse_ff.N",
    "data.length",
    "data",
]
LINES = [
    *(["train", "size=smoke", word] for word in NEVER),
    *(["train", "size=smoke", f"{key}={value}"] for key in NOT_NULL for value in ("", "null", "[[1]]", "{a: 1}")),
    ["train", "d_model=64", "d_model=a"],
    ["train", "model=reformer", "model=nope"],
    *(
        ["ablate", "size=smoke", word]
        for word in ("=", "lsh.n_hashes=", "lsh.n_hashes=,", "lsh.n_hashes=1,,2", "a=1,2")
    ),
    *(
        ["ablate", "size=smoke", f"d_model={value}"]
        for value in ("range(1,0)", "glob(*)", "interval(0,1)", "1,x", "[1,2")
    ),
    *(["ablate", "size=smoke", word] for word in ("model=reformer,nope", "~d_model", "hydra/launcher=", "run_dir=a,b")),
    *(["plan", word] for word in ("", "=", "d_model=", "--on", "--on=abacus", "--utilisation=x", "--utilisation=nan")),
    *(["plan", "--utilisation", value] for value in ("0", "-1", "2", "inf", "1e-400", "")),
    *(
        [command, word]
        for command in ("report", "list", "reproduce")
        for word in (
            "",
            " ",
            "=",
            "a=b=c",
            "/",
            "..",
            "reformer/",
            "reformer/../reformer/table2",
            LONG,
            "٣",
            "[b]",
        )
    ),
    *(["reproduce", "reformer/table2", f"size={size}"] for size in ("", "cpu,smoke", "[cpu]", "CPU", LONG)),
    *(["reproduce", "reformer/table2", f"seeds={seeds}"] for seeds in ("", ",", "a", "1-3", "٣", "-1", "9" * 5000)),
    *(["reproduce", "reformer/table2", f"jobs={jobs}"] for jobs in ("", "0", "-1", "1,2", "many", "1.5", "9" * 5000)),
    *(["reproduce", "reformer/table2", "--row", row] for row in ("", "=", LONG, "[/]")),
    ["reproduce", "--row", "LSH-4"],
    *(["data", word] for word in ("", "=", "prepare=stdlib", "lst", LONG, "list=")),
    *(["data", "prepare", word] for word in ("", "=", "nope", "..", "/etc", "stdlib/")),
    ["data", "prepare", "stdlib", "data.nope=1"],
    ["data", "prepare", "stdlib", "data.length=-1"],
    ["data", "prepare", "stdlib", "data.="],
    *(["sample", word] for word in ("", "=", "/nowhere", "..", LONG, "prompt=x", "a", "[b]")),
    *(["import", kind, word] for kind in ("trax", "hf") for word in ("", "=", "/nowhere", "..", LONG, "a=b", "[b]")),
    *(["export", kind, word, "x.npz"] for kind in ("trax", "hf") for word in ("", "=", "/nowhere", "..", LONG, "[b]")),
    *(
        ["sample", ".", f"{key}={value}"]
        for key in (
            "max_new",
            "temperature",
            "top_k",
            "top_p",
            "beam",
            "length_penalty",
            "n",
            "seed",
            "threads",
            "quantization",
        )
        for value in ("", "nan", "null", "[1]", "٣", "-1e400", "9" * 5000 + "x")
    ),
    *(["bench", word] for word in ("", "=", "nope", "attention=1", LONG)),
    *(
        ["bench", bench, f"{key}={value}"]
        for bench, key in (
            ("attention", "lengths"),
            ("attention", "names"),
            ("decode", "widths"),
            ("decode", "tokens"),
            ("memory", "depths"),
            ("train", "repeats"),
        )
        for value in ("", ",", "x", "-1", "0", "1.5", "٣", "nope", "[", "9" * 5000)
    ),
    ["bench", "attention", "lengths"],
    ["bench", "attention", "lengths=1", "lengths=2"],
    *([word] for word in ("", " ", "=", "train=1", "TRAIN", LONG, "٣", "-", "--", "../train", "__init__", "words")),
]


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is taken for a meant one fails its test, and takes no time."""

    def accepted(*args: object, **kwargs: object) -> None:
        raise AssertionError("it was taken for a command that somebody means")

    monkeypatch.chdir(tmp_path)
    for place in ("training.loop.train", "ablate.train", "reproduce.runner.make_record"):
        monkeypatch.setattr(f"efftx.{place}", accepted)


@pytest.mark.parametrize("words", LINES, ids=lambda words: " ".join(words)[:40].encode("unicode_escape").decode())
def test_a_line_that_nobody_means_is_one_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--json"]) == 2
    out = capsys.readouterr().out
    error = json.loads(out)["error"]
    assert set(error) == {"kind", "message", "hint"}
    assert error["message"].strip()
    assert len(error["message"]) < 2 * 600, "a sentence, not the whole input"

"""`efftx sample`, as a user meets it: what it says, how it streams, and one message for each mistake."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from efftx.cli import main
from efftx.core.artifact import read_document, write_document

SMALL = ["size=smoke", "threads=1", "evaluation.batches=1"]
RUNS = {
    "lm": ["model=transformer", "data=c4", "data.path=efftx:samples/c4"],
    "pieces": [
        *["model=transformer", "data=c4", "data.path=efftx:samples/c4"],
        *["data.tokenizer=unigram", "data.vocab_size=300", "positions.kind=sinusoidal"],
    ],
    "text": [
        *["model=transformer", "data=text", "data.path=README.md", "data.tokenizer=bpe", "data.vocab_size=300"],
        *["positions.kind=sinusoidal"],
    ],
    "glue": ["model=scaling", "data=glue", "data.path=efftx:samples/glue"],
    "spans": ["model=terraformer", "data=c4", "data.path=efftx:samples/c4"],
    "words": ["model=reformer", "data=duplicate"],
    "digits": [
        *["model=scaling", "data=copy_add", "data.length=12", "data.max_digits=6"],
        *["data.eval_min_digits=7", "data.eval_max_digits=9"],
    ],
    "shifted": ["model=scaling", "data=stdlib", "positions.kind=learned", "positions.before_shift=true"],
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`run_of("lm")`: a run of RUNS, trained once for this file."""
    folder = tmp_path_factory.mktemp("runs")

    def run_of(name: str) -> Path:
        if not (folder / name).exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("EFFTX_DATA", str(folder / "data"))
                assert main(["train", *RUNS[name], *SMALL, f"run_dir={folder / name}", "--json"]) == 0
        return folder / name

    return run_of


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EFFTX_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("EFFTX_DEBUG", raising=False)


Sample = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sample(capsys: pytest.CaptureFixture[str], run_of: Callable[[str], Path]) -> Sample:
    """`sample("lm", "prompt=Hi")`: exit code, stdout and stderr of the command on the run of that name."""

    def sample(name: str, *words: str) -> tuple[int, str, str]:
        run = run_of(name)
        capsys.readouterr()
        code = main(["sample", str(run), *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return sample


def as_json(found: tuple[int, str, str]) -> dict[str, Any]:
    assert found[0] == 0, found[2]
    document: dict[str, Any] = json.loads(found[1])
    return document


def test_the_prompt_and_what_follows_it_are_all_that_stdout_gets(sample: Sample) -> None:
    code, out, err = sample("lm", "prompt=Anna said", "max_new=9")
    assert code == 0
    found = as_json(sample("lm", "prompt=Anna said", "max_new=9", "--json"))["samples"][0]
    assert out.startswith("Anna said")
    assert len(found["tokens"]) == 9
    assert "9 tokens, " in err
    assert "tokens/s" in err


@pytest.mark.parametrize(("name", "start"), [("words", "prompt=0 5 9 2 7"), ("spans", "input=Hello world")])
def test_the_likeliest_token_alone_gives_the_same_text_every_time(sample: Sample, name: str, start: str) -> None:
    """Also where attention hashes: the rotations are drawn once for all samples of a call."""
    found = as_json(sample(name, start, "max_new=12", "top_k=1", "n=3", "--json"))["samples"]
    assert len({tuple(one["tokens"]) for one in found}) == 1
    greedy = as_json(sample(name, start, "max_new=12", "--json"))["samples"]
    assert found[0]["tokens"] == greedy[0]["tokens"]
    for nearly in ("temperature=1e-40", "top_p=1e-30"):
        drawn = as_json(sample(name, start, "max_new=12", nearly, "n=2", "--json"))["samples"]
        assert [one["tokens"] for one in drawn] == [greedy[0]["tokens"]] * 2


def test_json_is_one_object_with_every_sample(sample: Sample, run_of: Callable[[str], Path]) -> None:
    found = as_json(sample("lm", "prompt=Hi", "max_new=5", "temperature=0.8", "top_k=40", "n=3", "--json"))
    assert found["run"] == str(run_of("lm"))
    assert found["tokens_per_second"] > 0
    assert len(found["samples"]) == 3
    for one in found["samples"]:
        assert set(one) == {"prompt", "text", "tokens", "log_probability"}
        assert one["prompt"] == "Hi"
        assert one["log_probability"] < 0
    assert len({tuple(one["tokens"]) for one in found["samples"]}) == 3


def test_the_log_probability_is_that_of_the_trained_weights(sample: Sample, run_of: Callable[[str], Path]) -> None:
    from efftx.config.compose import from_dict
    from efftx.models.build import build_model

    found = as_json(sample("lm", "prompt=Hi", "max_new=4", "temperature=2", "--json"))["samples"][0]
    config = from_dict(json.loads((run_of("lm") / "config.json").read_text())["config"])
    model = build_model(config, 359, torch.device("cpu")).eval()
    newest = max((run_of("lm") / "checkpoints").iterdir())
    model.load_state_dict(load_file(newest / "model.safetensors"), strict=False)
    row = torch.tensor([[3 + ord("H"), 3 + ord("i"), *found["tokens"]]])
    with torch.no_grad():
        nats, _ = model(row, losses=True)
    assert found["log_probability"] == pytest.approx(-float(nats[0, 2:].sum()), rel=1e-5)


def test_the_same_seed_says_the_same_and_another_does_not(sample: Sample) -> None:
    words = ["prompt=Hi", "max_new=8", "temperature=1", "--json"]
    first, again, other = (as_json(sample("lm", *words, f"seed={seed}"))["samples"] for seed in (1, 1, 2))
    assert first == again != other


def test_the_seed_decides_the_rotations_of_hash_attention_too(sample: Sample) -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(found))  # whatever was drawn before
        found.append(as_json(sample("words", "prompt=0 1 2 3 4 5 6 7 8 9", "max_new=30", f"seed={seed}", "--json")))
    first, again, other = (one["samples"] for one in found)
    assert first == again != other


def test_a_beam_of_one_says_what_greedy_decoding_says_and_more_come_in_order(sample: Sample) -> None:
    greedy = as_json(sample("lm", "prompt=Hi", "max_new=8", "--json"))["samples"][0]
    one = as_json(sample("lm", "prompt=Hi", "max_new=8", "beam=1", "--json"))["samples"][0]
    assert one["tokens"] == greedy["tokens"]
    many = as_json(sample("lm", "prompt=Hi", "max_new=8", "beam=4", "n=3", "length_penalty=1", "--json"))["samples"]
    scores = [found["score"] for found in many]
    assert scores == sorted(scores, reverse=True)
    assert many[0]["log_probability"] == pytest.approx(scores[0] * (5 + len(many[0]["tokens"])) / 6)


def test_several_samples_are_printed_one_after_another_with_their_log_probability(sample: Sample) -> None:
    code, out, _ = sample("lm", "prompt=Hi", "max_new=4", "beam=2", "n=2")
    assert code == 0
    assert "1 of 2: log-probability -" in out
    assert "2 of 2: log-probability -" in out
    assert "score" in out


def test_a_streamed_text_is_the_text(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("prompt=the water", "max_new=20", "temperature=1")
    text = as_json(sample("pieces", *words, "--json"))["samples"][0]["text"]
    _, out, _ = sample("pieces", *words)
    assert out == f"the water{text}\n"


@pytest.mark.parametrize(
    ("name", "key", "says"),
    [("lm", "prompt", "c4"), ("words", "prompt", "duplicate"), ("glue", "input", "glue"), ("spans", "input", "c4")],
)
def test_without_a_text_the_first_row_of_the_test_split_is_taken_and_that_is_told(
    sample: Sample, name: str, key: str, says: str
) -> None:
    code, out, err = sample(name, "max_new=4", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["from_test_split"]
    assert found["samples"][0][key]
    assert f"No {key}= is given: the first row of the test split of data={says} is taken." in err


def test_an_example_is_cut_by_the_vocabulary_that_the_run_has_kept(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    sample("text", "prompt=The", "max_new=1")
    monkeypatch.setattr("efftx.data.trained_bpe.train_bpe", None)
    assert as_json(sample("text", "max_new=1", "--json"))["from_test_split"]


def test_an_example_of_the_duplication_task_stops_where_the_answer_begins(sample: Sample) -> None:
    prompt = as_json(sample("words", "max_new=1", "--json"))["samples"][0]["prompt"].split()
    assert prompt[0] == prompt[-1] == "0"
    assert prompt.count("0") == 2


def test_an_example_is_the_data_sets_own_input(sample: Sample) -> None:
    example = as_json(sample("glue", "max_new=4", "--json"))["samples"][0]
    assert example["input"].startswith("rte sentence1: ")
    given = as_json(sample("glue", f"input={example['input']}", "max_new=4", "--json"))["samples"][0]
    assert given == example


@pytest.mark.parametrize(
    ("name", "text"),
    [("spans", "input=The <extra_id_0> is closed"), ("digits", "input=123"), ("words", "prompt=0 5 9 0")],
)
def test_a_text_is_read_in_the_form_of_the_data(sample: Sample, name: str, text: str) -> None:
    key, _, value = text.partition("=")
    found = as_json(sample(name, text, "max_new=3", "--json"))["samples"][0]
    assert found[key] == value
    assert len(found["tokens"]) <= 3


def test_an_input_may_take_every_position_of_the_encoder(sample: Sample) -> None:
    assert as_json(sample("shifted", "input=" + "x" * 63, "max_new=1", "--json"))["samples"][0]["tokens"]


def test_a_run_is_sampled_without_its_data(sample: Sample, run_of: Callable[[str], Path], tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run_of("pieces"), moved)
    document = read_document(moved / "config.json")
    assert document is not None
    document["config"]["data"]["path"] = "/does/not/exist"
    write_document(moved / "config.json", document)
    assert main(["sample", str(moved), "prompt=the water", "max_new=2"]) == 0
    assert main(["sample", str(moved), "max_new=2"]) == 2


@pytest.mark.parametrize(
    ("name", "words", "says", "hint"),
    [
        ("lm", ["prompt=" + "x" * 5000], "The prompt has 5,000 tokens", "Shorten"),
        ("lm", ["prompt=Hi", "max_new=5000"], "max_new=5000 is too much", "or less"),
        ("glue", ["input=" + "x" * 5000], "The input has 5,001 tokens", "Shorten"),
        ("glue", ["max_new=5000"], "max_new=5000 is too much", "or less"),
        (
            "shifted",
            ["input=" + "x" * 64],
            "The input has 65 tokens, and the encoder has 64 positions.",
            "to 64 tokens",
        ),
        ("lm", ["prompt="], "prompt= is empty", "leave it out"),
        ("glue", ["input="], "input= is empty", "leave it out"),
        ("pieces", ["prompt=   "], "holds no token", "any text"),
        ("pieces", ["prompt=日本"], "has no piece for: 日 本", "characters that the training text has"),
        ("lm", ["prompt=<extra_id_100>"], "<extra_id_100> is no token", "<extra_id_99>"),
        ("words", ["prompt=0 128"], "'128' is no token", "0 to 127"),
        ("digits", ["input=12a"], "'a' is no token", "digits from 0 to 9"),
        ("lm", ["temperature=0"], "temperature=0 must be above 0", "greedy"),
        ("lm", ["temperature=-1"], "temperature=-1 must be above 0", "greedy"),
        ("lm", ["temperature=nan"], "temperature=nan is not a number", "greedy"),
        ("lm", ["temperature=warm"], "temperature=warm is not a number", "greedy"),
        ("lm", ["top_p=0"], "top_p=0 must be above 0", "top_p=0.9"),
        ("lm", ["top_p=1.5"], "top_p=1.5", "top_p=0.9"),
        ("lm", ["top_k=0"], "top_k=0 must be at least 1", "top_k=40"),
        ("lm", ["top_k=2.5"], "top_k=2.5 is not a whole number", "top_k=40"),
        ("lm", ["beam=0"], "beam=0 must be at least 1", "greedy"),
        ("lm", ["beam=4", "temperature=1"], "temperature=1.0 is given", "Leave one"),
        ("lm", ["beam=4", "top_k=9"], "top_k=9 is given", "Leave one"),
        ("lm", ["beam=2", "n=3"], "n=3 is more than a beam of 2", "beam=3"),
        ("lm", ["length_penalty=1"], "without a beam", "beam=4"),
        ("lm", ["beam=2", "length_penalty=-1"], "length_penalty=-1", "0.6"),
        ("lm", ["n=2"], "would all be the same", "temperature=1"),
        ("lm", ["n=0"], "n=0 must be at least 1", ""),
        ("lm", ["max_new=0"], "max_new=0 must be at least 1", ""),
        ("lm", ["threads=0"], "threads=0 must be at least 1", ""),
        ("lm", ["seed=-1"], "seed=-1 must not be negative", "seed=0"),
        ("lm", ["seed=" + "9" * 30], "must be at most", "seed=0"),
        ("lm", ["quantization=int2"], "quantization=int2 is none of int8, int4", "Leave quantization out"),
        ("lm", ["temprature=1"], "no option 'temprature='", "temperature"),
        ("lm", ["--temperature"], "--temperature", ""),
        ("lm", ["two", "words"], "'two' is one run too many", "in quotes"),
        ("lm", ["input=Hi"], "has no encoder", "Give prompt="),
        ("glue", ["prompt=Hi"], "reads an input, not a prompt", "Give input="),
        ("lm", ["prompt=Hi", "input=Hi"], "both given", "encoder"),
    ],
)
def test_a_mistake_is_one_message_with_a_hint(
    sample: Sample, name: str, words: list[str], says: str, hint: str
) -> None:
    code, out, err = sample(name, *words)
    assert code == 2
    assert says in err
    assert hint in err
    assert err.count("efftx: ") == 1
    assert "Traceback" not in err
    assert out == ""
    error = json.loads(sample(name, *words, "--json")[1])["error"]
    assert says in error["message"]


def test_what_is_no_run_is_told_with_the_nearest(
    capsys: pytest.CaptureFixture[str], run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EFFTX_RUNS", str(run_of("lm").parent))
    assert main(["sample"]) == 2
    assert "Say which run." in capsys.readouterr().err
    assert main(["sample", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert main(["sample", f"{run_of('lm')}m"]) == 2
    assert f"Did you mean '{run_of('lm')}'?" in capsys.readouterr().err.replace("\n", "")


def test_a_run_that_was_broken_is_told_what_it_lacks(
    capsys: pytest.CaptureFixture[str], run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    def told(broken: Path) -> str:
        capsys.readouterr()
        assert main(["sample", str(broken), "prompt=Hi"]) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err
        return err

    broken = tmp_path / "broken"
    shutil.copytree(run_of("lm"), broken)
    shutil.rmtree(broken / "checkpoints")
    assert "has no checkpoint" in told(broken)
    shutil.copytree(run_of("words") / "checkpoints", broken / "checkpoints")
    err = told(broken)
    assert "is not of the model in its config.json (model=transformer)" in err
    assert "the weight '" in err
    document = read_document(broken / "config.json")
    assert document is not None
    document["config"]["n_heads"] = "many"
    write_document(broken / "config.json", document)
    assert "none of this version" in told(broken)
    document["config"]["no_such_key"] = document["config"].pop("n_heads")
    write_document(broken / "config.json", document)
    assert "none of this version" in told(broken)
    (broken / "config.json").write_text("{}")
    assert "does not have its checksum" in told(broken)

"""The options of commands: one sentence for each slip, whichever command it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftx.cli import main
from efftx.config.values import MOST_SEED, Range
from efftx.errors import UserError
from efftx.options import COUNT, SEED, Options, decimal, truth, whole, wholes
from efftx.sampling.request import OPTIONS, Request, read_request

SLIPS = [
    *(["sample", "runs/x", word] for word in ("max_new=0", "max_new=-1", "max_new=100000000000000000000", "max_new=x")),
    *(["sample", "runs/x", word] for word in ("n=0", "n=1.5", "n=", "beam=0", "beam=-3", "top_k=0", "threads=0")),
    *(
        ["sample", "runs/x", word]
        for word in ("threads=100000", "seed=-1", "seed=9223372036854775808", "quantization=maybe")
    ),
    *(["sample", "runs/x", word] for word in ("top_p=0", "top_p=2", "top_p=nan", "temperature=0", "temperature=-1")),
    *(["sample", "runs/x", word] for word in ("temperature=inf", "temperature=1e7", "length_penalty=-1", "prompt=")),
    ["sample", "runs/x", "beam=2", "temperature=1"],
    ["sample", "runs/x", "beam=2", "n=3"],
    ["sample", "runs/x", "n=3"],
    ["sample", "runs/x", "prompt=a", "input=b"],
    ["sample", "runs/x", "n=1", "n=2"],
    ["sample", "runs/x", "max_nwe=1"],
    *(["bench", "attention", word] for word in ("lengths=", "lengths=0", "lengths=abc", "lengths=1,,2", "lengths=[]")),
    *(["bench", "attention", word] for word in ("lengths=100000000000", "repeats=0", "repeats=1.5", "repeats=-1")),
    *(
        ["bench", "attention", word]
        for word in ("names=lhs-4", "names=", "pass=sideways", "device=mps", "device=cuda:x")
    ),
    *(["bench", "attention", word] for word in ("speed=1", "lengths", "=3", "lengths=64,64", "pass=side")),
    *(["bench", "decode", word] for word in ("widths=abc", "widths=0", "widths=", "tokens=0", "seed=-1", "batch=0")),
    *(["bench", "decode", word] for word in ("protocol=x", "context=x", "names=800m-dens", "cache_bytes=0")),
    *(["bench", "memory", word] for word in ("depths=0", "depths=100000", "batch=x", "lengths=-1", "device=cpu:1")),
    *(["bench", "train", word] for word in ("repeats=", "depths=[1,x]", "names=transformr")),
    *(["reproduce", "reformer/table2", word] for word in ("seeds=", "seeds=0,0", "seeds=-1", "seeds=1.5", "seeds=0,")),
    *(["reproduce", "reformer/table2", word] for word in (f"seeds={2**63}", "seeds=x", f"seeds={'9' * 5000}")),
    *(["reproduce", "reformer/table2", word] for word in ("jobs=1.5", "jobs=0", "jobs=", "jobs=1,2", "jobs=1000000")),
    *(["reproduce", "reformer/table2", word] for word in ("size=", "size=hug", "row=x", "seed=1")),
    *(["plan", "size=smoke", *words] for words in (["--utilisation", "0"], ["--utilisation", "nan"], ["--on", "z"])),
    *(["plan", "size=smoke", *words] for words in (["--utilisation", "much"], ["--utilisation", "2"])),
    *(["data", *words] for words in ([], ["lst"], ["prepare"], ["prepare", "enwik"], ["list", "x=1"], ["verify", "x"])),
    ["data", "prepare", "stdlib", "data.length=x"],
    *([command, "seed=-1"] for command in ("train", "plan", "ablate")),
    ["ablate", "seed=1,-1"],
    ["ablate", "seed=9223372036854775808,1"],
    ["list", "x=1"],
    ["report", "size=cpu"],
]


@pytest.fixture(autouse=True)
def own_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNS", "RESULTS", "DATA"):
        monkeypatch.setenv(f"EFFTX_{name}", str(tmp_path / name.lower()))


@pytest.mark.parametrize("words", SLIPS, ids=lambda words: " ".join(words)[:60])
def test_a_slip_is_one_sentence_with_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert set(error) == {"kind", "message", "hint"}
    assert "\n" not in error["message"]
    assert 0 < len(error["message"]) < 300
    slip = words[-1].partition("=")[0].removeprefix("--")
    assert error["kind"] in ("bad_command", "unknown_item") or any(
        word.partition("=")[0] in error["message"] or word.partition("=")[2] in error["message"] for word in words[1:]
    ), f"{error} does not name {slip}"


@given(st.text(max_size=30) | st.integers().map(str) | st.floats().map(str))
def test_a_whole_number_is_what_python_reads_or_one_sentence(word: str) -> None:
    for allowed in (COUNT, SEED, Range(-5, 5)):
        try:
            number = whole("n", word, allowed)
        except UserError as error:
            assert error.message.startswith("n=")  # noqa: PT017 - the other words are numbers
        else:
            assert number == int(word)
            assert allowed.why_not(number) == ""


def test_the_ends_of_a_range_are_in_it() -> None:
    assert whole("seed", str(MOST_SEED), SEED) == MOST_SEED
    assert whole("seed", "0", SEED) == 0
    for word in (str(MOST_SEED + 1), "-1", "1" * 41, "9" * 5000):
        with pytest.raises(UserError, match="must"):
            whole("seed", word, SEED)
    assert decimal("top_p", "1", Range(0, 1, open_=True)) == 1.0
    with pytest.raises(UserError, match="must be above 0"):
        decimal("top_p", "0", Range(0, 1, open_=True))


@pytest.mark.parametrize(
    ("text", "numbers"), [("3", [3]), ("1,2", [1, 2]), ("[1,2]", [1, 2]), (" 1 , 2 ", [1, 2]), ("+4", [4])]
)
def test_lists_are_read(text: str, numbers: list[int]) -> None:
    assert wholes("lengths", text) == numbers


@pytest.mark.parametrize("text", ["", "[]", "1,", ",", "1,,2", "a", "1.5", "٣", "²", "--1", "1 2", "0x1", "1_0", "1,1"])
def test_what_is_no_list_of_whole_numbers_is_told(text: str) -> None:
    with pytest.raises(UserError, match="lengths="):
        wholes("lengths", text)


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "1e999", "", "x", "٣", "1,5"])
def test_what_is_no_number_is_told(word: str) -> None:
    with pytest.raises(UserError, match="is not a number"):
        decimal("temperature", word, Range(0, 1e6))


def test_truths_are_two_words() -> None:
    assert (truth("a", "true"), truth("a", "false")) == (True, False)
    with pytest.raises(UserError, match="neither true nor false"):
        truth("a", "1")


def test_options_are_asked_for_by_name_and_the_rest_is_refused() -> None:
    options = Options(["lengths=1,2", "names=a", "device=cuda:1", "speed=3"])
    assert options.numbers("lengths", [7]) == [1, 2]
    assert options.numbers("depths", [7]) == [7]
    assert options.number("repeats", 5) == 5
    assert options.name("names", ["a", "b"], "b") == "a"
    assert options.device() == "cuda:1"
    with pytest.raises(UserError, match="speed="):
        options.refuse_rest()


def test_every_option_of_sample_is_read_by_one_reader() -> None:
    words = {
        "prompt": "a",
        "input": "a",
        "quantization": "int4",
        "temperature": "0.5",
        "top_p": "0.5",
        "complete": "0.5",
    }
    for key in OPTIONS:
        beside = {"beam": "1"} if key == "length_penalty" else {"top_k": "3"} if key == "n" else {}
        assert read_request({key: words.get(key, "1"), **beside}) != Request(**{"beam": 1} if beside else {})

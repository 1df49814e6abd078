"""`efftx bench decode`: names that it takes, and mistakes that are told before anything is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from efftx.bench import decode, decode_weights
from efftx.bench.decode_cases import case_named
from efftx.cli import main
from efftx.decoding.quantization import QUANTIZATIONS, Quantization
from efftx.errors import UserError
from tests.bench.runs import SMALL_CACHE, decoded


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a mistake is told before anything is allocated")

    monkeypatch.setattr(decode, "Reference", refuse)
    monkeypatch.setattr(decode, "make_weights", refuse)


@pytest.mark.usefixtures("nothing_is_measured")
@pytest.mark.parametrize(
    ("words", "told", "hint"),
    [
        (["names=800m-dens"], "800m-dens", "800m-dense"),
        (["names=transformers-t6"], "transformers-t6", "transformers-t5"),
        (["names=width-100-dense"], "width-100-dense", ""),
        (["names=width-128-spars"], "width-128-spars", ""),
        (["names=800m-dense-blocksmany"], "800m-dense-blocksmany", ""),
        (["names=width-128-dense-blocks"], "width-128-dense-blocks", ""),
        (["names=800m-dense-blocks"], "800m-dense-blocks", ""),
        (["names=800m-dense-int8-blocks2-int8"], "800m-dense-int8-blocks2-int8", ""),
        (["names=800m-dense-int4-blocks2-int8"], "800m-dense-int4-blocks2-int8", ""),
        (["names=800m-dense-blocks2-blocks3"], "800m-dense-blocks2-blocks3", ""),
        (["widths=100"], "width-100-dense", ""),
        (["widths=128", "names=800m-dense"], "widths=", ""),
        (["tokens=2"], "tokens=2", "12"),
        (["repeats=0"], "repeats=0", ""),
        (["repeat=2"], "repeat", "repeats"),
        (["protocol=stedy"], "stedy", "steady"),
        (["batch=0"], "batch=0", ""),
        (["context=long"], "context=long", ""),
        (["contexts=16"], "contexts", "context"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    words: list[str], told: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "decode", *words]) == 2
    out, err = capsys.readouterr()
    message, *rest = err.strip().splitlines()
    assert out == ""
    assert told in message
    assert hint in "".join(rest)
    assert len(rest) <= 1
    assert "Traceback" not in err


@pytest.mark.usefixtures("nothing_is_measured")
def test_a_model_that_does_not_fit_says_how_much_it_needs_and_how_much_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode_weights, "available_memory", lambda: 3 * 10**9)
    words = ["names=width-128-dense,17b-dense", f"cache_bytes={SMALL_CACHE}"]
    assert main(["bench", "decode", *words, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "too_large"
    assert error["message"].startswith("17b-dense takes 7.")
    assert "3.0 GB of memory are free" in error["message"]
    assert "-blocksN" in error["hint"]


def test_a_context_counts_as_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_weights, "available_memory", lambda: 10**9)
    with pytest.raises(Exception, match="beside them"):
        decoded("names=width-128-dense", "context=1000000")


def test_huge_pages_are_asked_for_before_torch_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    del os.environ["THP_MEM_ALLOC_ENABLE"]
    assert main(["bench", "decode", "names=nothing"]) == 2
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    code = "import sys, efftx.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    assert main(["bench"]) == 2
    assert "efftx bench decode" in capsys.readouterr().err


@pytest.mark.parametrize("base", ["width-128-dense", "logits-128-s4", "800m-dense"])
@pytest.mark.parametrize("how", QUANTIZATIONS)
def test_a_quantization_and_the_number_of_blocks_stand_behind_a_name_in_either_order(
    how: Quantization, base: str
) -> None:
    plain, both = case_named(base), replace(case_named(base), quantization=how, n_blocks=2)
    assert case_named(f"{base}-{how}") == replace(plain, name=f"{base}-{how}", quantization=how)
    assert case_named(f"{base}-blocks2") == replace(plain, name=f"{base}-blocks2", n_blocks=2)
    for behind in (f"-{how}-blocks2", f"-blocks2-{how}"):
        assert case_named(base + behind) == replace(both, name=base + behind)


def test_a_number_of_blocks_ends_where_the_kinds_of_attention_come_again() -> None:
    assert case_named("reformer-12-blocks8").n_blocks == 8
    assert case_named("reformer-12-full-blocks3").n_blocks == 3
    for n in (1, 3, 6):
        with pytest.raises(UserError, match=f"names=reformer-12-blocks{n}: the kinds of attention .* after 4") as error:
            case_named(f"reformer-12-blocks{n}")
        assert "reformer-12-blocks4" in error.value.hint


@pytest.mark.parametrize(
    ("name", "form"),
    [("width-100-dense", "multiple of 128"), ("width-128-thin", "width-N-sparse"), ("logits-100-s4", "16 dividing N")],
)
def test_a_name_that_is_made_of_numbers_says_which_numbers_it_takes(name: str, form: str) -> None:
    with pytest.raises(UserError, match=f"names={name}") as error:
        case_named(name)
    assert form in error.value.hint

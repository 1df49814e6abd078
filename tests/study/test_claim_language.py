from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftx.errors import UserError
from efftx.study.claim_language import check_kind, parse, parse_where


@pytest.mark.parametrize(
    "text",
    [
        '__import__("os").system("true") > 0',
        'open("/etc/passwd").read() > 0',
        "(lambda: 1)() > 0",
        "[x for x in (1, 2)] > 0",
        'cell.__class__["A", "x"] > 0',
        'cell["A", "x"].real > 0',
        'cell["A", "x"].__class__.__mro__[1] > 0',
        'cell["A" + "B", "x"] > 0',
        'cell[f"{1}", "x"] > 0',
        'cell[open, print("x")] > 0',
        "cell[0, 1] > 0",
        'cell["A":"B"] > 0',
        'cell["A", "x", "y"] > 0',
        "cell > 0",
        "other > 0",
        '"text" > 0',
        "True > 0",
        "1j > 0",
        'globals()["cell"] > 0',
        "9 ** 9 ** 9 > 0",
        "1 << 60 > 0",
        "7 // 2 > 0",
        "max(*[1]) > 0",
        "max(1, key=abs) > 0",
        "abs(1, 2) > 0",
        "mean() > 0",
        "pow(2, 3) > 0",
        "min() > 0",
        "(x := 1) > 0",
        "1 if 1 > 0 else 2 > 0",
        'cell["A", "x"] != 1',
        'cell["A", "x"] in [1]',
        'cell["A", "x"]',
        "1",
        "",
        "import os",
        "1 > ",
        'cell["A", "x"] > noise',
        'cell["A", "x"] >= cell["B", "x"] - 2 * noise',
        "cell[cell, column] > 0",
        "gate[row] > 0",
        "cell[a, b] > cell[b, a]",
        "cell[" + "(" * 500 + "row" + ")" * 500 + "] > 0",
        "1 + " * 400 + "1 > 0",
    ],
)
def test_whatever_leaves_the_language_is_refused(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(text)
    assert refused.value.kind == "bad_claim"


def test_nothing_of_a_refused_claim_is_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with pytest.raises(UserError):
        parse(f'__import__("pathlib").Path({str(target)!r}).touch() > 0')
    assert not target.exists()


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_as_a_users_mistake(text: str) -> None:
    with contextlib.suppress(UserError):
        parse(text)


def test_free_names_know_their_axis() -> None:
    parsed = parse('cell[row, column] >= published[row, "x"] - 1')
    assert parsed.free == {"row": "row", "column": "column"}
    assert parse("cell[column] > 0").free == {"column": "row"}


@pytest.mark.parametrize("text", ['other == "A"', "row", 'row == "A" == "B"', "row == 1", "row in names", 'row < "A"'])
def test_a_restriction_names_free_names_and_text_only(text: str) -> None:
    with pytest.raises(UserError):
        parse_where(text, {"row": "row"})


def test_a_restriction_is_read_as_it_stands() -> None:
    admits = parse_where('row in ["A", "B"] and not row == "B" or row == "C"', {"row": "row"})
    assert [name for name in "ABCD" if admits({"row": name})] == ["A", "C"]
    assert parse_where("  ", {})({})


@pytest.mark.parametrize("divisor", ["0", "0.0", "-0", "(1 - 1)", "(2 * 0)", "min(0, 1)", "abs(3 - 3)"])
def test_a_division_by_zero_is_refused_where_it_is_read(divisor: str) -> None:
    with pytest.raises(UserError, match="divides by zero"):
        parse(f'cell["A"] / {divisor} > 1')
    assert parse(f'cell["A"] / (cell["B"] * {divisor}) > 1')


def test_who_writes_noise_is_told_of_the_kind() -> None:
    with pytest.raises(UserError, match="the claim's kind says"):
        parse('cell["A", "x"] > cell["B", "x"] + noise')


@pytest.mark.parametrize(
    ("text", "kind", "margin", "why"),
    [
        ('cell["A"] > cell["B"]', "bettr", None, "there is no kind 'bettr'"),
        ('cell["A"] > 1', "better", None, "that is kind 'at least'"),
        ('cell["A"] > cell["B"] and 1 < cell["A"]', "better", None, "that is kind 'at least'"),
        ('cell["A"] > cell["B"]', "at least", None, "that is kind 'better'"),
        ('1 > published["A"]', "at least", None, "nothing of"),
        ('cell["A"] == cell["B"]', "better", None, "asks for kind 'as good as'"),
        ('cell["A"] == 3', "at least", None, "or for kind 'exact'"),
        ('cell["A"] >= cell["B"] - 1', "as good as", 1.0, "'- 1' and the margin"),
        ('cell["A"] + 0.5 * 2 >= cell["B"]', "as good as", 1.0, r"'\+ 0.5 \* 2' and the margin"),
        ('-(cell["A"] - 1) == cell["B"]', "as good as", 1.0, "'- 1' and the margin"),
        ('cell["A"] > cell["B"]', "as good as", 1.0, "compares with <=, >= or =="),
        ('cell["A"] >= cell["B"]', "as good as", None, "a margin"),
        ('cell["A"] >= cell["B"]', "better", 1.0, "a margin"),
        ('cell["A"] >= cell["B"]', "as good as", 0.0, "not above 0"),
        ('cell["A"] >= cell["B"]', "as good as", float("nan"), "not above 0"),
    ],
)
def test_a_kind_goes_with_its_comparisons_and_its_margin(text: str, kind: str, margin: float | None, why: str) -> None:
    with pytest.raises(UserError, match=why):
        check_kind(parse(text), text, kind, margin)


@pytest.mark.parametrize(
    ("text", "kind", "margin"),
    [
        ('cell["A"] > cell["B"] + 0.1', "better", None),
        ('cell["A"] / cell["B"] > 2 or cell["A"] <= 1.5 * gate["chance"]', "at least", None),
        ('cell["A"] >= published["A"]', "at least", None),
        ('cell["A"] <= cell["B"]', "as good as", 0.02),
        ('cell["A"] == cell["B"]', "as good as", 0.02),
        ('cell["A"] < cell["B"] and cell["A"] >= 1', "exact", None),
        ('cell["A"] == cell["B"] and cell["A"] == 1 + 1', "exact", None),
        ('cell["A"] - cell["B"] <= cell["C"]', "as good as", 0.02),
    ],
)
def test_what_goes_together_is_taken(text: str, kind: str, margin: float | None) -> None:
    check_kind(parse(text), text, kind, margin)

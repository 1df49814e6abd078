"""YAML slips of users: one sentence with the file, and the line where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from efftx.cli import main
from efftx.core.yaml_files import MOST_BYTES, MOST_DEPTH, read_yaml_file
from efftx.errors import UserError

ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)
)
SLIPS: dict[str, tuple[bytes, str]] = {
    "a tab": (b"a:\n\tb: 1\n", "line 2"),
    "two colons": (b"x: 1\na: b: c\n", "line 2"),
    "another encoding": (b"x: 1\na: \xff\xfe\n", "line 2: this is not UTF-8"),
    "nested lists": (b"a: " + b"[" * 100_000, f"more than {MOST_DEPTH} levels"),
    "nested mappings": (b"{a: " * 100_000, f"more than {MOST_DEPTH} levels"),
    "nested keys": (b"? " * 50_000, f"more than {MOST_DEPTH} levels"),
    "a list as a key": (b"? [1, 2]\n: 3\n", "a key must be one word"),
    "a mapping as a key": (b"x: 1\n? {a: 1}\n: 3\n", "line 2"),
    "5,000 digits": (b"a: " + b"9" * 5000, "cannot be read"),
    "a date that is none": (b"a: 2020-99-99\n", "month"),
    "nothing": (b"", "it is empty"),
    "a comment alone": (b"# to do\n", "it is empty"),
    "a list": (b"- 1\n", "this is list"),
    "a word": (b"abc", "this is str"),
    "a key twice": (b"a: 1\nb: 2\na: 3\n", "line 3: not valid YAML: the key 'a' stands twice"),
    "aliases of aliases": (ALIASES.encode(), "more than 100,000 values"),
    "an alias of itself": (b"a: &a [*a]\n", "*a stands inside what it names"),
    "an alias of nothing": (b"a: *x\n", "undefined alias"),
    "an object of Python": (b"a: !!python/object/apply:os.system ['x']\n", "constructor"),
    "two documents": (b"a: 1\n---\nb: 2\n", "another document"),
    "an open quote": (b"a: 'x\n", "unexpected end"),
    "a NUL": (b"a: \0\n", "control characters"),
    "too much": (b"a: " + b"x" * MOST_BYTES, "more than"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_told_with_its_file_and_line(slip: str, tmp_path: Path) -> None:
    content, says = SLIPS[slip]
    file = tmp_path / "own.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml_file(file, "bad_config_file")
    assert str(file) in caught.value.message
    assert says in caught.value.message
    assert len(caught.value.message) < len(str(file)) + 300


def test_anchors_and_merged_keys_are_read(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("a: &x {b: 1}\nc:\n  <<: *x\n  d: [*x, *x]\n")
    assert read_yaml_file(file, "bad_config_file")[1]["c"] == {"b": 1, "d": [{"b": 1}, {"b": 1}]}


@pytest.mark.parametrize(
    ("place", "kind"), [("folder", "bad_config_file"), ("pipe", "bad_config_file"), ("absent", "missing_file")]
)
def test_what_is_no_file_is_told_and_nothing_waits(place: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    if place == "folder":
        file.mkdir()
    elif place == "pipe":
        os.mkfifo(file)
    with pytest.raises(UserError) as caught:
        read_yaml_file(file, "bad_config_file")
    assert (caught.value.kind, str(file) in caught.value.message) == (kind, True)


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("where", ["model", "preset", "defaults", "experiment"])
def test_a_slip_in_a_file_of_the_users_own_is_one_message(
    where: str, slip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, says = SLIPS[slip]
    words = ["plan", "--config-dir", str(tmp_path), "model=mine", "size=smoke", "data=duplicate"]
    (tmp_path / "preset" / "mine").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# @package _global_\ndefaults: [base]\nmodel: mine\n")
    (tmp_path / "model" / "base.yaml").write_text(
        "# @package _global_\nn_layers: 1\nd_model: 16\nd_ff: 128\nn_heads: 2\n"
    )
    (tmp_path / "preset" / "mine" / "smoke.yaml").write_text("# @package _global_\ndata: {length: 16}\n")
    if where == "experiment":
        (tmp_path / "mine").mkdir()
        monkeypatch.setenv("EFFTX_EXPERIMENTS", str(tmp_path / "mine"))
        words = ["report", "mine/own"]
    else:
        assert main(words) == 0
    files = {
        "model": "model/mine.yaml",
        "preset": "preset/mine/smoke.yaml",
        "defaults": "model/base.yaml",
        "experiment": "mine/own.yaml",
    }
    (tmp_path / files[where]).write_bytes(content)
    capsys.readouterr()
    assert main(words) == 2
    told = capsys.readouterr().err
    assert files[where] in told
    assert says in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("${oc.env:EFFTX_NOT_THERE}", "EFFTX_NOT_THERE"),
        ("${nope}", "'nope' not found"),
        ("${n_layers}", "Recursive"),
        ("${nope:1}", "Unsupported interpolation type nope"),
        ("${oc.decode:'['}", "mismatched input"),
        ("[1, 2]", "n_layers"),
        ("${oc.decode:abc}", "abc"),
        (".nan", "n_layers"),
        ("9e99", "n_layers"),
    ],
)
def test_a_value_in_an_own_file_that_cannot_be_is_one_message_that_names_its_key(
    value: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "preset" / "mine").mkdir(parents=True)
    (tmp_path / "model" / "mine.yaml").write_text(
        f"# @package _global_\nmodel: mine\nn_layers: {value}\nd_model: 16\nd_ff: 128\nn_heads: 2\n"
    )
    (tmp_path / "preset" / "mine" / "smoke.yaml").write_text("# @package _global_\ndata: {length: 16}\n")
    assert main(["plan", "--config-dir", str(tmp_path), "model=mine", "size=smoke", "data=duplicate"]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "n_layers" in told
    assert "Traceback" not in told

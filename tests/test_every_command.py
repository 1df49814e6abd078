"""Every command, run once for people on a console of ASCII, and once with --json."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from efftx.cli import main
from efftx.commands import COMMANDS
from tests.conftest import GOLDEN

SMALL = ["model=transformer", "data=duplicate", "size=smoke", "threads=1", "training.steps=3", "evaluation.batches=1"]
EACH = {
    "train": ["train", *SMALL],
    "ablate": ["ablate", "seed=1,2", *SMALL],
    "reproduce": ["reproduce", "reformer/figure1", "size=smoke"],
    "report": ["report", "reformer/table2"],
    "bench": ["bench", "attention", "lengths=64", "names=full", "repeats=1"],
    "plan": ["plan", *SMALL],
    "sample": ["sample", "RUN", "max_new=3"],
    "import": ["import", "hf", str(GOLDEN / "transformers_reformer"), *SMALL[1:4], "data.n_symbols=39"],
    "export": ["export", "trax", "RUN", "exported.npz"],
    "compare": ["compare", "RUN", "RUN"],
    "data": ["data", "list"],
    "power": ["power", "reformer/table2"],
    "list": ["list", "scaling"],
}
WRONG = {
    "train": ["train", "d_model=a"],
    "ablate": ["ablate", "d_model=a,b"],
    "reproduce": ["reproduce", "nope"],
    "report": ["report", "nope"],
    "bench": ["bench", "nope"],
    "plan": ["plan", "d_model=a"],
    "sample": ["sample", "nowhere"],
    "import": ["import", "hf", "nowhere"],
    "export": ["export", "trax", "nowhere", "exported.npz"],
    "compare": ["compare", "nowhere", "nowhere"],
    "data": ["data", "prepare", "nope"],
    "power": ["power", "nope"],
    "list": ["list", "nope"],
}


def no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=no_constant)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "one"
    assert main(["train", *SMALL, f"run_dir={path}"]) == 0
    return path


def test_each_command_has_its_line() -> None:
    assert set(EACH) == set(WRONG) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_writes_to_a_console_of_ascii(
    command: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main([str(run) if word == "RUN" else word for word in EACH[command]]) == 0
    assert out.buffer.getvalue().isascii()  # type: ignore[attr-defined]
    assert len(out.buffer.getvalue()) > 20  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_it_answers_with_one_json_object(
    command: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*(str(run) if word == "RUN" else word for word in EACH[command]), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert isinstance(strict(out), dict)


@pytest.mark.parametrize("command", COMMANDS)
def test_its_mistake_is_one_json_object(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WRONG[command], "--json"]) == 2
    assert set(strict(capsys.readouterr().out)["error"]) == {"kind", "message", "hint"}


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_is_one_json_object(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> NoReturn:
        print("half a line", end="")
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS[command].load(), "run", interrupted)
    assert main([*EACH[command], "--json"]) == 130
    assert strict(capsys.readouterr().out)["error"]["kind"] == "interrupted"


def test_a_finished_run_is_shown_and_sampled_on_a_disk_that_is_only_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.open

    def read_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path).startswith(str(run)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *rest, **more)

    def refused(path: Any, *rest: Any, **more: Any) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr(os, "open", read_only)
    for name in ("mkdir", "rename", "replace", "unlink", "truncate"):
        monkeypatch.setattr(os, name, refused)
    monkeypatch.setattr(os, "access", lambda path, mode, **more: not mode & os.W_OK)
    assert main(["train", *SMALL, f"run_dir={run}"]) == 0
    assert "weights" in capsys.readouterr().out
    assert main(["sample", str(run), "max_new=3"]) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize("error", [KeyError("lost"), OSError(errno.EIO, "Input/output error", "a file"), ValueError()])
def test_with_json_a_fault_of_our_own_is_an_object_too(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> NoReturn:
        raise error

    monkeypatch.setattr(COMMANDS["list"].load(), "run", broken)
    code = main(["list", "--json"])
    told = capsys.readouterr()
    assert code == (2 if isinstance(error, OSError) else 1)
    assert strict(told.out)["error"]["kind"] == ("system_error" if isinstance(error, OSError) else "internal_error")
    assert ("Traceback" in told.err) is not isinstance(error, OSError)

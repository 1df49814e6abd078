"""Shell completion: what is offered where, and that the script which the shell evaluates asks for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from efftx.cli import main
from efftx.commands import COMMANDS
from efftx.commands.completion import ITEMS, WORDS
from efftx.data.dataset import names

OF_A_FOLDER = {"sample", "compare"}


def offered(typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("COMP_LINE", typed)
    assert main(["-sc", "query=bash"]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("efftx ", list(COMMANDS)),
        ("efftx re", ["reproduce", "report"]),
        ("efftx train mo", ["model="]),
        ("efftx train model=r", ["model=reformer"]),
        ("efftx ablate model=reformer lsh.n_h", ["lsh.n_hashes="]),
        ("efftx plan preset=scaling/c", ["preset=scaling/cpu"]),
        ("efftx train preset=scaling/cpu d_q", ["d_qk="]),
        ("efftx train data", ["data=", "data."]),
        ("efftx train data=c4 data.to", ["data.tokenizer=", "data.tokenizer_path="]),
        ("efftx train hydra", []),
        ("efftx report sparse/table3", ["sparse/table3"]),
        ("efftx report spars", ["sparse"]),
        ("efftx bench a", ["attention"]),
        ("efftx bench attention ", []),
        ("efftx data prepare enw", ["enwik8"]),
        ("efftx reproduce --ver", ["--verify"]),
        ("efftx train --config", ["--config-dir"]),
        ("efftx nope ", []),
    ],
)
def test_the_words_that_may_come_next(
    typed: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = offered(typed, monkeypatch, capsys)
    assert [word for word in found if "/" not in word or word in words] == words


def test_every_data_set_can_be_prepared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert offered("efftx data prepare ", monkeypatch, capsys) == names()


def test_every_command_has_its_words() -> None:
    composing = {name for name, command in COMMANDS.items() if command.composes}
    assert composing | set(ITEMS) | set(WORDS) | OF_A_FOLDER == set(COMMANDS)


@pytest.mark.parametrize("words", [[], ["install=tcsh"], ["install=bash", "query=bash"]])
def test_another_shell_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--shell-completion", *words]) == 2
    assert "install=bash" in capsys.readouterr().err


def test_completion_comes_before_any_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--shell-completion", "install=bash"]) == 2
    assert "before any command" in capsys.readouterr().err


def test_bash_completes_a_key(tmp_path: Path) -> None:
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not here")
    command = tmp_path / "efftx"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m efftx "$@"\n')
    command.chmod(0o755)
    script = """eval "$(efftx --shell-completion install=bash)"
    COMP_LINE='efftx train model=reformer lsh.n_h' COMP_CWORD=3
    hydra_bash_completion
    echo "${COMPREPLY[@]}"; complete -p efftx"""
    run = subprocess.run(
        [bash, "-c", script],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    found, registered = run.stdout.splitlines()
    assert found == "lsh.n_hashes=", run.stderr
    assert registered.endswith("-F hydra_bash_completion efftx")

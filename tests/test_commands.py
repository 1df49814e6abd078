"""What holds for every command: its help, what its words may be, and what reaches the console."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from efftx.cli import main
from efftx.commands import COMMANDS
from efftx.commands.outcome import as_json, console
from efftx.core.shipped import shipped
from efftx.errors import UserError
from efftx.options import Options
from efftx.plan.hardware import DEVICES
from efftx.study.records import RecordStore
from efftx.terminal import show_data, show_list


def efftx(*words: str, **surroundings: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "efftx", *words]
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **surroundings}, timeout=120)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_eighty_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main([*([command] if command else []), "--help"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: efftx {command}".rstrip())
    assert max(map(len, lines)) <= 80
    named = re.findall(r"[\w-]+", " ".join(lines))
    choices = [path.stem for group in ("model", "data", "size") for path in shipped("conf").glob(f"{group}/*.yaml")]
    if command in ("train", "ablate", "plan"):
        assert set(choices) <= set(named)
    if command == "plan":
        assert set(DEVICES) <= set(named)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Say which command"),
        (["trian"], "'train'"),
        (["--jsn", "train"], "'--json'"),
        (["train", "--jsn"], "'--json'"),
        (["reproduce", "--stael", "reformer/table2"], "'--stale'"),
        (["train", "--confg-dir", "x"], "'--config-dir'"),
        (["train", "--multirun"], "efftx ablate"),
        (["train", "-m", "lsh.n_hashes=1,2"], "efftx ablate"),
        (["train", "--config-name=other"], "model="),
        (["list", "--config-dir", "x"], "--config-dir"),
        (["report", "reformer/table2", "--check"], "whole report"),
        (["report", "size=cpu"], "shows an item at one size"),
        (["report", "reformer/table2", "size=cup"], "'cpu'"),
        (["report", "reformer/figure2", "size=cpu"], "Defined: paper, smoke"),
        (["list", "--cfg", "job"], "composes no configuration"),
        (["list", "--cfg", "job", "--json"], "composes no configuration"),
        (["reproduce", "reformer/table2", "seeds=0", "seeds=1"], "given twice"),
        (["train", "--model", "reformer"], "A setting has no hyphens: model=reformer."),
        (["train", "--steps=3"], "A setting has no hyphens: schedule.steps=3 or training.steps=3."),
        (["reproduce", "--seeds", "0", "reformer/table2"], "A setting has no hyphens: seeds=0."),
        (["reproduce", "table2"], "'reformer/table2' or 'scaling/table2' or 'sparse/table2'"),
        (["report", "reformer/nope"], "Known: reformer/decode, reformer/decode_model, reformer/figure1"),
        (["report", "reformer/tabel2"], "Did you mean 'reformer/table2'?"),
        (["report", "nope"], "`efftx list` names them all."),
        (["bench", "attention", "names=lsh"], "'lsh-1' or 'lsh-1-later' or 'lsh-2'"),
    ],
)
def test_a_wrong_word_names_the_nearest_right_one(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    assert says in (told.out if "--json" in words else told.err)


def test_json_has_no_nan_and_is_ascii() -> None:
    text = as_json({"loss": math.nan, "rows": [{"x": -math.inf, "says": "0 ± 1"}, (1.5, math.inf)]})
    assert json.loads(text) == {"loss": None, "rows": [{"x": None, "says": "0 ± 1"}, [1.5, None]]}
    assert text.isascii()


@pytest.mark.parametrize(
    "words", [["--help"], ["list"], ["data", "list"], ["report", "reformer/table1"], ["train", "ü"]]
)
def test_a_console_of_ascii_is_written_to(words: list[str]) -> None:
    done = efftx(*words, PYTHONIOENCODING="ascii:strict")
    assert done.returncode in (0, 2)
    assert b"Traceback" not in done.stderr
    assert (done.stdout + done.stderr).isascii()


def test_a_word_that_is_no_text_is_told_in_text() -> None:
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"efftx", b"train", b"d_model=\xff\xfe", b"--json"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert set(json.loads(done.stdout)) == {"error"}


def test_a_directory_with_an_equals_sign_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    (tmp_path / "n=3").mkdir()
    options = Options(["a=b", "n=3", "runs/c=d"], ["n"], paths=True)
    assert (options.plain, options.given) == (["a=b", "runs/c=d"], {"n": "3"})
    with pytest.raises(UserError, match="no option 'a='"):
        Options(["a=b"], ["n"])


def test_sigterm_is_answered_with_json() -> None:
    code = (
        "import os, signal, sys; from efftx.commands import list as command\n"
        "command.run = lambda a, w: os.kill(os.getpid(), signal.SIGTERM)\n"
        "from efftx.cli import main; sys.exit(main(['list', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert json.loads(done.stdout)["error"]["kind"] == "interrupted"


HEAVY = ("torch", "datasets", "wandb", "matplotlib", "transformers", "tokenizers", "sentencepiece")


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], (*HEAVY, "hydra", "numpy", "rich", "yaml")),
        *(([command, "--help"], (*HEAVY, "hydra", "numpy", "rich", "yaml")) for command in COMMANDS),
        (["trian"], (*HEAVY, "hydra", "numpy", "yaml")),
        (["train", "--jsn"], (*HEAVY, "hydra", "numpy", "yaml")),
        (["sample", "runs/x", "promt=a"], (*HEAVY, "hydra", "yaml")),
        (["train", "lsh.n_hashs=4"], HEAVY),
        (["train", "modl=reformer"], HEAVY),
        (["ablate", "lsh.n_hashs=4,8"], HEAVY),
        (["plan", "d_model=[2]"], HEAVY),
        (["report", "reformer/tabel2"], (*HEAVY, "hydra")),
        (["reproduce", "reformer/tabel2"], HEAVY),
        (["list"], HEAVY),
        (["data", "list"], HEAVY),
    ],
)
def test_a_quick_answer_imports_nothing_heavy(words: list[str], absent: tuple[str, ...]) -> None:
    assert_imports_none(words, absent)


def test_the_list_of_all_committed_records_imports_nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFTX_RESULTS", str(Path(__file__).parent.parent / "results"))
    assert_imports_none(["list"], HEAVY)


def assert_imports_none(words: list[str], absent: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom efftx.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        f"sys.exit(', '.join(sorted(set({absent!r}) & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SMALL = ["model=transformer", "data=duplicate", "size=smoke", "threads=1", "training.steps=3", "evaluation.batches=1"]


def test_markup_in_a_path_is_printed_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "[b]x:smile:[/]\\"
    assert main(["train", *SMALL, f"run_dir='r/{name}\\'"]) == 0
    assert f"r/{name}" in capsys.readouterr().out
    assert main(["sample", f"r/{name}", "max_new=x"]) == 2
    assert main(["sample", f"r/{name}", "top_k=0"]) == 2
    assert main(["sample", f"r/{name}2"]) == 2
    assert f"r/{name}2" in capsys.readouterr().err


def test_markup_in_a_row_and_in_a_reason_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = {"id": "a/[b]", "state": "stale", "why": "row [/] [red]x", "sizes": ["cpu"], "caption": "[link=x]y[/link]"}
    row = {
        "name": "[b]",
        "variant": "[/]",
        "bytes": 1,
        "sha256": None,
        "state": "damaged",
        "licence": "",
        "path": "[i]/x/y",
    }
    show_list([line], console())
    show_data([row], console())
    out = capsys.readouterr().out
    for text in (line["id"], line["why"], line["caption"], "[b]", "[/]", "[i]/x"):
        assert text in out


LIGHT = {
    "train": ["train", "size=smoke"],
    "ablate": ["ablate", "seed=1,2", "size=smoke"],
    "reproduce": ["reproduce", "reformer/figure1", "size=smoke"],
    "report": ["report", "reformer/figure1"],
    "list": ["list", "reformer/figure1"],
    "data": ["data", "list"],
}


@pytest.mark.parametrize("command", LIGHT)
@pytest.mark.parametrize("root", ["a_file", "a_file/below", "a_link", "a_loop"])
def test_a_root_that_is_no_folder_is_one_message(
    command: str, root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    (tmp_path / "a_link").symlink_to("nowhere")
    (tmp_path / "a_loop").symlink_to("a_loop")
    name = {"train": "RUNS", "ablate": "RUNS", "data": "DATA"}.get(command, "RESULTS")
    monkeypatch.setenv(f"EFFTX_{name}", root)
    assert main([*LIGHT[command], "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "bad_root"
    assert f"EFFTX_{name}={root}" in error["message"]


def test_an_empty_root_is_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EFFTX_RESULTS", "")
    assert RecordStore().root == Path("results")
    (tmp_path / "results").write_text("")
    assert main(["list"]) == 2


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_no_traceback(closed: str) -> None:
    words = f"{sys.executable} -m efftx list reformer/figure1 {'>&-' if closed == 'stdout' else '2>&-'}"
    done = subprocess.run(words, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["list", "reformer/figure1"], ["list", "reformer/figure1", "--json"]])
def test_a_full_stdout_is_one_message(words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "efftx", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "prints cannot be written: No space left on device." in done.stderr
    assert "Free some space there" in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize(("value", "code"), [("7", 2), ("yes", 2), ("", 0), ("0", 0), ("1", 0)])
def test_a_switch_of_the_environment_is_0_or_1(
    value: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFTX_NATIVE", value)
    assert main(["data", "list", "--json"]) == code
    assert (f"EFFTX_NATIVE={value} is neither 0 nor 1." in capsys.readouterr().out) == (code == 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data=text", "data.path=no-such-file"], "data.path=no-such-file does not exist."),
        (["data=c4", "data.path=no-such-*.jsonl"], "data.path=no-such-*.jsonl does not exist."),
        (["data=c4", "data.path=efftx:samples/c5"], "Did you mean 'efftx:samples/c4'?"),
        (["model=reformer", "data=duplicate", "data.path=no-such-file"], "data=duplicate reads no file"),
    ],
)
def test_a_plan_wants_the_data_that_it_names(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "size=smoke", *words]) == 2
    assert says in capsys.readouterr().err
    assert main(["plan", "size=smoke", "data=c4", "data.path=efftx:samples/c4"]) == 0


def test_a_word_of_any_length_is_quoted_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "x" * 100_000]) == 2
    assert len(capsys.readouterr().err) < 1000
    path = "/".join(["a" * 60] * 6)
    assert main(["sample", path]) == 2
    assert path in capsys.readouterr().err


@pytest.mark.parametrize("sweep", ["d_model=range(1,0)", "d_model=glob(*)", "model=glob(*)", "d_model=interval(0,1)"])
def test_a_sweep_that_lists_nothing_is_told(sweep: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "size=smoke", sweep]) == 2
    assert "List them" in capsys.readouterr().err


@pytest.mark.parametrize("json_too", [[], ["--json"]])
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--cfg"], "--cfg needs a word"),
        (["--cfg", "jb"], "'job'"),
        (["--cfg=bad"], "Known: all, hydra, job"),
        (["--info", "plugin"], "'plugins'"),
        (["--cfg", "job", "--package", "lhs"], "'lsh'"),
        (["--cfg", "job", "-p"], "name of a node"),
        (["--package", "lsh"], "--cfg job"),
        (["--hydra-help", "model=scaling", "data=c4"], "`efftx train --help`"),
    ],
)
def test_a_flag_of_hydra_is_checked_before_hydra_sees_it(
    flags: list[str], says: str, json_too: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *flags, *json_too]) == 2
    told = capsys.readouterr()
    assert says in (json.loads(told.out)["error"].__repr__() if json_too else told.err)
    assert "usage:" not in told.err


def _shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--cfg", "job"]) == 0
    shown: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return shown


def test_what_is_shown_is_what_the_command_composes(capsys: pytest.CaptureFixture[str]) -> None:
    implied = _shown(capsys, "train", "strided.stride=32", "size=smoke")
    assert (implied["model"], implied["attention"], implied["objective"]) == ("sparse_transformer", ["strided"], "lm")
    assert _shown(capsys, "train", "model=transformer", "data=photos", "size=cpu")["data"]["length"] == 768
    planned = _shown(capsys, "plan", "model=transformer", "data=enwik8", "devices=64")
    assert planned["size"] == "paper"
    assert main(["train", "model=reformer", "--cfg", "job", "--package", "lsh"]) == 0
    assert capsys.readouterr().out.startswith("# @package lsh\nn_hashes: ")
    assert main(["train", "data=enwik8", "data.path=~/a (1).txt", "--cfg", "job", "--package", "data.path"]) == 0
    assert "a (1).txt" in capsys.readouterr().out


def test_a_node_of_a_configuration_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "model=reformer", "--cfg", "job", "--package", "lsh", "--json"]) == 0
    assert "n_hashes" in json.loads(capsys.readouterr().out)["configurations"][0]["config"]
    assert main(["train", "--cfg", "hydra", "--json"]) == 2


@pytest.mark.parametrize(
    "word", ["size=smoke", "++size=smoke", "preset=transformer/smoke", "preset@_global_=transformer/smoke"]
)
def test_a_plan_of_a_given_size_is_not_of_the_papers(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "model=transformer", "data=duplicate", word, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] < 10**6


@pytest.mark.parametrize("width", ["0", "1", "²", "٣", "-5", "wide", "9" * 5000])
def test_a_width_that_is_none_is_as_none(
    width: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("LINES", width)
    assert main(["list", "reformer/figure1"]) == 0
    assert "r" in capsys.readouterr().out

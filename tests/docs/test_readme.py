"""What the README tells its reader to type is typed, in its order, at the size that takes seconds."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sysconfig
import tempfile
from pathlib import Path

import pytest

from efftx.bench.decode import DEFAULT
from efftx.bench.decode_cases import case_named
from efftx.cli import main
from efftx.config.compose import known_keys
from tests.docs.pages import NOT_RUN, ROOT, Block, blocks, commands, write_file
from tests.soak.__main__ import HARM

PAGE = "README.md"
DECODE_NAME = re.compile(r"\b(?:800m|17b)((?:-(?!int[48])\w+)*)(-int[48])?")
PRICED = 2
"""The exit code of what would take more than 24 hours and was not said `--yes` to."""


def shell(heading: str) -> Block:
    """The one block of shell under a heading."""
    (found,) = [block for block in blocks(PAGE) if block.language == "sh" and block.heading == heading]
    return found


def test_every_block_is_of_a_kind_that_is_tested_here() -> None:
    kinds = {(block.heading, block.language) for block in blocks(PAGE)}
    assert {language for _, language in kinds} <= {"sh", "yaml", "python"}
    assert {heading for heading, language in kinds if language == "sh"} == {
        "From a clone",
        "A tour",
        "Your own model and experiment",
    }


def test_every_key_is_named_in_the_readme_or_in_a_comment_of_conf() -> None:
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "conf").rglob("*.yaml")]
    comments = "\n".join(line for text in files for line in text.splitlines() if "#" in line)
    page = (ROOT / PAGE).read_text(encoding="utf-8") + comments

    def named(key: str) -> bool:
        if re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.]*\w)", page):
            return True
        node, _, name = key.rpartition(".")  # the head of a file of conf/data says `edition`, not `data.edition`
        return node == "data" and re.search(rf"\b{name}\b", comments) is not None

    assert [key for key in known_keys() if not named(key)] == []


def test_what_make_is_asked_for_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = [command.split() for command in commands(shell("From a clone"))]
    assert asked
    assert all(program == "make" and target in targets for program, target in asked)


def test_the_tree_names_every_folder_and_nothing_that_is_not_there() -> None:
    (tree,) = [block for block in blocks("CONTRIBUTING.md") if not block.language]
    lines = tree.text.splitlines()
    outside = [line.split()[0] for line in lines if re.match(r"\w+/", line)]
    assert [name for name in outside if not (ROOT / name).is_dir()] == []
    inside = {word for line in lines if re.match(r"  \w", line) for word in re.split(r"\s{2,}", line)[1].split()}
    folders = {f"{path.parent.name}/" for path in (ROOT / "efftx").glob("*/__init__.py")}
    assert {name for name in inside if name.endswith("/")} == folders
    assert [name for name in inside if not (ROOT / "efftx" / name).exists()] == []


def test_the_reliability_tables_are_what_was_counted() -> None:
    counted = json.loads((ROOT / "results" / "soak.json").read_text())
    tables = {
        name: [" | ".join([row, *(f"{n:,}" for n in counts.values())]) for row, counts in counted[name].items()]
        for name in ("kills", "flips")
    }
    lines = [line.strip("| ") for line in (ROOT / PAGE).read_text().splitlines() if line.startswith("|")]
    for rows in tables.values():
        at = lines.index(rows[0])
        assert lines[at : at + len(rows)] == rows
    assert sum(counts["killed"] for counts in counted["kills"].values()) >= 200
    assert min(sum(counts.values()) for counts in counted["flips"].values()) >= 500
    harm = [
        counts[word]
        for part in counted.values()
        if isinstance(part, dict)
        for counts in part.values()
        for word in counts
        if word in HARM
    ]
    assert harm
    assert not any(harm)


def test_links_lead_somewhere() -> None:
    for page in (PAGE, "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{page}: {target}"


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the text that stands for a downloaded one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # timings wait for nobody
    for name in ("DATA", "RUNS", "RESULTS"):
        monkeypatch.setenv(f"EFFTX_{name}", str(tmp_path / name.lower()))
    library = Path(sysconfig.get_path("stdlib"))
    text = b"".join((library / name).read_bytes() for name in ("argparse.py", "ast.py"))
    for name in ("enwik8", "my.txt"):
        (tmp_path / name).write_bytes(text)
    return tmp_path


def quick(command: str, folder: Path) -> list[str]:
    """The words behind `efftx`, at the size that takes seconds."""
    command = command.replace("/path/to/enwik8", str(folder / "enwik8")).replace("/path/to/c4", "efftx:samples/c4")
    if "their/results" in command:
        shutil.copytree(folder / "results", folder / "theirs", dirs_exist_ok=True)
    command = command.replace("their/results", str(folder / "theirs"))
    for named in re.findall(r"runs/([\w-]+)-0123456789ab", command):
        found = sorted((folder / "runs").glob(f"{named}-*"))
        assert found, f"{command}: no run of {named} was trained before"
        command = command.replace(f"runs/{named}-0123456789ab", str(found[0]))
    program, name, *words = shlex.split(command)
    assert program == "efftx"
    if name == "ablate":
        words = [re.sub(r"^seed=.*", "seed=0", re.sub(r"^([\w.]+=\w+,\w+),.*", r"\1", word)) for word in words]
    if name in ("train", "ablate", "reproduce") and "size=paper" not in words:
        words = [word for word in words if word != "size=cpu"]
        words += [] if "size=smoke" in words else ["size=smoke"]
    if name == "bench" and words[0] == "decode":
        for case in DECODE_NAME.finditer(command):
            case_named(case.group())
        words = [
            DECODE_NAME.sub(r"width-128-dense\2", word, count=1) if word.startswith("names=") else word
            for word in words
        ]
        words = [re.sub(r"(names=.*?),.*", r"\1,width-128-sparse", word) for word in words]
        words += [] if any(word.startswith("names=") for word in words) else ["names=width-128-dense"]
        words += ["tokens=3", "cache_bytes=65536"]
    elif name == "bench":
        fewer = {
            "attention": ["names=full-sdpa,lsh-2", "repeats=1"],
            "memory": ["names=transformer,reversible", "depths=1,2"],
            "train": ["names=transformer,reversible", "depths=1", "repeats=1"],
        }
        words = [w for w in words if not w.startswith(("lengths=", "names="))] + ["lengths=64", *fewer[words[0]]]
    return [name, *words]


@pytest.mark.slow
def test_the_tour_is_walked(newcomer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands(shell("A tour"))
    assert len(found) >= 30
    assert {command.split()[1] for command in found} == {
        *("list", "report", "power", "reproduce", "train", "ablate", "plan", "bench", "sample", "compare", "data")
    }
    for case in DEFAULT:
        case_named(case)
    wrong = {}
    for command in found:
        code = main(quick(command, newcomer))
        out, err = capsys.readouterr()
        priced = "reproduce" in command and "size=paper" in command
        if code != (PRICED if priced else 0) or "Traceback" in out + err:
            wrong[command] = (code, out[-500:], err[-500:])
        elif not priced and not out.strip():
            wrong[command] = "nothing was printed"
    assert not wrong


def test_a_line_that_is_not_tested_says_so_and_there_are_few() -> None:
    lines = [line for block in blocks(PAGE) for line in block.text.splitlines() if NOT_RUN in line]
    assert 0 < len(lines) <= 3
    assert commands(Block("sh", f"efftx list  # one\nefftx x  # two {NOT_RUN}\n\n# three\n", "")) == ["efftx list"]


@pytest.mark.slow
def test_a_model_and_an_experiment_of_ones_own_touch_no_package(
    newcomer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [block for block in blocks(PAGE) if block.heading == "Your own model and experiment"]
    for block in own:
        if block.language == "yaml":
            write_file(block, newcomer)
    train, reproduce = [command for block in own if block.language == "sh" for command in commands(block)]
    assert main(shlex.split(train)[1:]) == 0
    assert "wide-duplicate-" in capsys.readouterr().out
    assert main([*shlex.split(train)[1:], "--cfg", "job"]) == 0
    told = capsys.readouterr().out
    assert "activation: gelu" in told
    assert "model: wide" in told

    variable, _, value = shlex.split(reproduce)[0].partition("=")
    monkeypatch.setenv(variable, value)
    assert main(shlex.split(reproduce)[2:]) == 0
    told = capsys.readouterr().out
    assert "6 run, 0 recorded already, 0 failed" in told
    assert "two heads are better than one" in told


def test_what_is_shown_in_python_runs(newcomer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, layers = [block for block in blocks(PAGE) if block.language == "python"]
    words = [
        "model=transformer",
        "data=text",
        "data.path=my.txt",
        "size=smoke",
        "training.steps=2",
        "schedule.warmup=1",
    ]
    assert main(["train", *words, "run_dir=runs/transformer-text-0123456789ab"]) == 0
    assert main(["reproduce", "reformer/table2", "size=smoke", "--row", "Full"]) == 0
    capsys.readouterr()
    exec(compile(runs.text, PAGE, "exec"), {})
    told = capsys.readouterr().out
    assert "transformer 2 torch.Size([1, 12, 256])" in told
    assert "accuracy" in told
    exec(compile(layers.text, PAGE, "exec"), {})
    told = capsys.readouterr().out
    assert told.count("torch.Size([2, 256, 64])") == 6

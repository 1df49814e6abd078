"""The recipes of CONTRIBUTING.md, each applied word for word to a copy of the package, and trained with."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, apply_changes, blocks, commands, write_file

PAGE = "CONTRIBUTING.md"
SECONDS = 300


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of what a checkout has of the package."""
    for name in ("efftx", "conf", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


def apply(package: Path, heading: str) -> list[str]:
    """Does what the recipe under `heading` says; its commands."""
    recipe = [block for block in blocks(PAGE) if block.heading == heading]
    for block in recipe:
        if block.language in ("python", "yaml"):
            write_file(block, package)
        elif block.language == "diff":
            apply_changes(block, package)
    return [command for block in recipe if block.language == "sh" for command in commands(block)]


def run(package: Path, command: str) -> subprocess.CompletedProcess[str]:
    """`efftx ...` with the copied package, in the folder that holds it."""
    runs = package / "runs"
    for named in re.findall(r"runs/([\w-]+)-0123456789ab", command):
        (found,) = runs.glob(f"{named}-*")
        command = command.replace(f"runs/{named}-0123456789ab", str(found))
    program, *words = shlex.split(command)
    assert program == "efftx"
    environment = {**os.environ, "PYTHONPATH": str(package), "EFFTX_RUNS": str(runs)}
    return subprocess.run(
        [sys.executable, "-m", "efftx", *words],
        cwd=package,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def run_all(package: Path, found: list[str]) -> dict[str, str]:
    """Standard output of every command; all must succeed, and none may show a traceback."""
    told = {}
    for command in found:
        done = run(package, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        told[command] = done.stdout
    return told


@pytest.mark.slow
def test_a_mechanism_is_added_as_the_page_says_and_trains_ablates_and_is_planned(package: Path) -> None:
    found = apply(package, "Add a mechanism")
    assert [command.split()[1] for command in found] == ["train", "ablate", "plan"]
    told = run_all(package, found)
    planned = run(package, f"{found[2]} size=smoke mean.width=16 n_layers=1 --json").stdout
    assert json.loads(planned)["parameters_by_component"]["mean"] == 2 * 16 * 32 + 16 + 32
    assert "log-perplexity" in told[found[0]]
    assert "mean.width" in told[found[1]]


def test_what_a_mechanism_lacks_is_told_in_a_sentence_that_names_the_method(package: Path) -> None:
    train, *_ = apply(package, "Add a mechanism")
    layer = package / "efftx" / "layers" / "mean.py"
    complete = layer.read_text()

    layer.write_text(complete.replace("def reset_parameters", "def reset_weights"))
    done = run(package, f"{train} --json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 2
    assert "MeanAttention" in error["message"]
    assert "reset_parameters" in error["message"] + error["hint"]

    layer.write_text(complete)
    trained = json.loads(run(package, f"{train} --json").stdout)
    done = run(package, f"efftx sample {trained['run']} prompt='0 1' --json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 2
    assert "MeanAttention" in error["message"]
    assert "new_cache" in error["message"] + error["hint"]


@pytest.mark.slow
def test_a_data_set_is_added_as_the_page_says_listed_learned_and_sampled(package: Path) -> None:
    found = apply(package, "Add a data set")
    listed, trained, sampled = run_all(package, found).values()
    assert "counting" in listed
    assert "counting[length=64]" in trained
    assert re.search(r"\d", sampled)
    whole_split = run(package, f"{found[1]} evaluation.batches=0 --json")
    assert whole_split.returncode == 2
    assert "evaluation.batches=0 is the whole split" in json.loads(whole_split.stdout)["error"]["message"]


def test_a_change_that_does_not_fit_is_refused(package: Path) -> None:
    (block,) = [b for b in blocks(PAGE) if b.language == "diff" and b.heading == "Add a data set"]
    apply_changes(block, package)
    with pytest.raises(AssertionError, match="0 places"):
        apply_changes(type(block)("diff", "+++ efftx/config/schema.py\n no such line\n+more\n", ""), package)

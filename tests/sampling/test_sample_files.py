"""`efftx sample` of pictures: drawn whole or completed, written to files that are the same every time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efftx.cli import main
from efftx.data.dataset import open_dataset
from efftx.data.pictures import PicturesConfig
from efftx.data.samples import resolve_path
from efftx.data.sound import wav_of

SIDE = 4
RUNS = {
    "transformer": ["model=transformer", "data=photos"],
    "reformer": ["model=reformer", "data=photos", "attention=[local,lsh]"],
    "music": ["model=transformer", "data=music", "data.length=64"],
    "text": ["model=transformer", "data=duplicate"],
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`run_of("reformer")`: a run of RUNS, trained once for this file."""
    folder = tmp_path_factory.mktemp("runs")

    def run_of(name: str) -> Path:
        if not (folder / name).exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("EFFTX_DATA", str(folder / "data"))
                words = ["size=smoke", "threads=1", "evaluation.batches=1", f"run_dir={folder / name}", "--json"]
                assert main(["train", *RUNS[name], *words]) == 0
        return folder / name

    return run_of


Sampled = Callable[..., dict[str, Any]]


@pytest.fixture
def sampled(capsys: pytest.CaptureFixture[str], run_of: Callable[[str], Path]) -> Sampled:
    """`sampled("reformer", "n=2")`: what the command prints as JSON, its error where it fails."""

    def sampled(name: str, *words: str, code: int = 0) -> dict[str, Any]:
        run = run_of(name)
        capsys.readouterr()
        assert main(["sample", str(run), *words, "--json"]) == code
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document["error"] if code else document

    return sampled


def squares(path: str, n: int) -> np.ndarray:
    """The pictures of a grid of n, each as a row of bytes."""
    grid = np.asarray(Image.open(path))
    columns = int(np.ceil(np.sqrt(n)))
    step = SIDE + 2
    places = [(step * (i // columns), step * (i % columns)) for i in range(n)]
    return np.stack([grid[y : y + SIDE, x : x + SIDE].reshape(-1) for y, x in places])


@pytest.mark.parametrize("name", ["transformer", "reformer"])
def test_pictures_are_drawn_whole_and_are_what_the_grid_shows(
    sampled: Sampled, run_of: Callable[[str], Path], name: str
) -> None:
    found = sampled(name, "n=3", "seed=5")
    assert (found["kind"], found["seed"], found["from_test_split"]) == ("picture", 5, False)
    (path,) = found["files"]
    assert Path(path).parent == run_of(name) / "samples"
    tokens = np.array([one["tokens"] for one in found["samples"]])
    assert tokens.shape == (3, 3 * SIDE * SIDE)
    assert (squares(path, 3) == tokens).all()
    assert len({tuple(row) for row in tokens.tolist()}) == 3
    content = Path(path).read_bytes()
    again = sampled(name, "n=3", "seed=5")
    assert again["files"] == [path]
    assert Path(path).read_bytes() == content
    other = sampled(name, "n=3", "seed=6")
    assert other["files"] != [path]
    assert other["samples"] != found["samples"]


def test_rows_of_the_test_split_are_completed_from_their_first_share(sampled: Sampled, tmp_path: Path) -> None:
    dataset = open_dataset(PicturesConfig("photos", 3 * SIDE * SIDE, side=SIDE))
    test = dataset.batch("test", 0, 0, 5).tokens_BL.numpy()
    for share, n_given in ((0.5, 24), (0.25, 12), (0.001, 1), (0.999, 47)):
        found = sampled("transformer", "n=5", f"complete={share}", f"out={tmp_path / 'new' / 'grid.png'}")
        assert found["from_test_split"]
        assert found["files"] == [str(tmp_path / "new" / "grid.png")]
        given = np.array([one["given"] for one in found["samples"]])
        assert (given == test[:, :n_given]).all()
        shown = squares(found["files"][0], 5)
        assert (shown[:, :n_given] == test[:, :n_given]).all()
        assert (shown[:, n_given:] == [one["tokens"] for one in found["samples"]]).all()


def test_a_picture_of_ones_own_is_completed(sampled: Sampled) -> None:
    folder = resolve_path("efftx:samples/photos", "photos")
    assert folder is not None
    found = sampled("transformer", f"data.path={folder / 'test' / 'grace_hopper.png'}", "n=2", "top_k=3")
    assert not found["from_test_split"]
    first, second = (one["given"] for one in found["samples"])
    assert first == second
    assert len(first) == 24


def test_sounds_are_drawn_and_continued_each_in_a_file(sampled: Sampled, tmp_path: Path) -> None:
    found = sampled("music", "n=2", f"out={tmp_path / 'a.wav'}")
    assert found["kind"] == "sound"
    assert found["files"] == [str(tmp_path / "a-1.wav"), str(tmp_path / "a-2.wav")]
    assert [len(one["tokens"]) for one in found["samples"]] == [64, 64]
    written = [(tmp_path / f"a-{i}.wav").read_bytes() for i in (1, 2)]
    assert written == [wav_of(np.array(one["tokens"]), 12_000) for one in found["samples"]]
    going_on = sampled("music", f"data.path={tmp_path / 'a-1.wav'}", "complete=0.75")
    assert np.abs(np.array(going_on["samples"][0]["given"]) - found["samples"][0]["tokens"][:48]).max() <= 1
    assert len(going_on["samples"][0]["tokens"]) == 16


def test_the_terminal_gets_the_files_path_and_nothing_else(
    capsys: pytest.CaptureFixture[str], run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    capsys_words = ["sample", str(run_of("transformer")), f"out={tmp_path / 'a'}", "max_new=10"]
    capsys.readouterr()
    assert main(capsys_words) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'a.png'}\n"
    assert "10 tokens, " in captured.err
    shown = squares(str(tmp_path / "a.png"), 1)[0]
    assert (shown[10:] == 0x80).all()


@pytest.mark.parametrize(
    ("out", "says"),
    [
        (".", "out=. is a folder"),
        ("/", "out=/ is a folder"),
        ("pics", "out=pics is a folder"),
        ("pics/", "out=pics/ is a folder"),
        ("new/", "out=new/ is a folder"),
        ("file/a.png", "cannot write under file/a.png"),
        ("/proc/no/a.png", "cannot write under /proc/no/a.png"),
        ("~nobody-of-this-name/a.png", "is no path"),
    ],
)
def test_a_bad_place_is_told_before_anything_is_drawn(
    sampled: Sampled,
    run_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    out: str,
    says: str,
) -> None:
    run_of("transformer")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr("efftx.sampling.sample.generate", None)
    error = sampled("transformer", f"out={out}", code=2)
    assert says in error["message"]
    assert error["hint"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "pics"]


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("transformer", ["prompt=a cat"], "prompt= is for texts"),
        ("transformer", ["input=a cat"], "input= is for texts"),
        ("transformer", ["beam=2"], "beam= is for texts"),
        ("transformer", ["complete=1"], "complete=1 must be less than 1"),
        ("transformer", ["complete=0"], "complete=0 must be above 0"),
        ("transformer", ["complete=0.5", "n=5000"], "and n=5000 are to be completed"),
        ("transformer", ["data.path=no such file.png"], "Cannot read no such file.png"),
        ("transformer", ["data.path="], "data.path= is empty"),
        ("transformer", ["out="], "out= is empty"),
        ("transformer", ["out=/proc/no/file.png"], "cannot write under /proc/no/file.png"),
        ("transformer", ["max_new=49"], "max_new=49 is more than is left of a picture of 48 tokens"),
        ("text", ["out=a.png"], "out= is for pictures and sounds"),
        ("text", ["complete=0.5"], "complete= is for pictures and sounds"),
        ("text", ["data.path=a.png"], "data.path= is for pictures and sounds"),
    ],
)
def test_a_mistake_is_one_message_with_a_hint(sampled: Sampled, name: str, words: list[str], says: str) -> None:
    error = sampled(name, *words, code=2)
    assert says in error["message"]
    assert error["hint"]

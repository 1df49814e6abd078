"""`efftx import` and `efftx export`: weights of other code become a run that every command takes, and go back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from efftx.api import load as efftx_load
from efftx.cli import main
from efftx.core import files
from efftx.runs.imported import architecture_of
from tests.conftest import GOLDEN

HF = GOLDEN / "transformers_reformer"
HF_WORDS = ("data=duplicate", "data.n_symbols=39", "evaluation.batches=1", "threads=1")
LM = GOLDEN / "reformer_lm_local_lsh_table.npz"
LM_WORDS = (
    *("model=reformer", "data=duplicate", "data.n_symbols=22", "data.length=64", "evaluation.batches=1", "threads=1"),
    *("attention=[local,lsh]", "activation=gelu", "local.chunk_len=16", "lsh.chunk_len=16", "lsh.n_hashes=4"),
    *("lsh.n_buckets=[4,4]", "lsh.attend_across_buckets=true", "lsh.allow_duplicates=true"),
)


@pytest.fixture
def efftx(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """`efftx(word, ...)`: the JSON object that the command prints; an exit code other than 0 fails."""

    def run(*words: str | Path) -> dict[str, Any]:
        assert main([str(words[0]), "--json", *map(str, words[1:])]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(word, ...)`: the message of a command that exits with 2."""

    def run(*words: str | Path) -> str:
        assert main([*map(str, words)]) == 2
        return capsys.readouterr().err

    return run


def test_the_authors_arrays_become_a_run_that_every_command_takes(efftx, tmp_path: Path) -> None:
    imported = efftx("import", "trax", LM, *LM_WORDS)
    assert imported["step"] == 0
    assert {"loss", "accuracy"} <= set(imported["metrics"])
    again = efftx("import", "trax", LM, *LM_WORDS)
    assert (again["run"], again["weights_sha256"]) == (imported["run"], imported["weights_sha256"])

    assert efftx("sample", imported["run"], "prompt=0 1 2", "max_new=3")["samples"]
    start = efftx("train", *LM_WORDS, *SHAPES, f"pretrained={imported['run']}", "training.steps=2")
    assert start["step"] == 2
    assert start["weights_sha256"] != imported["weights_sha256"]

    written = efftx("export", "trax", imported["run"], tmp_path / "back.npz")
    with np.load(LM) as theirs, np.load(tmp_path / "back.npz") as back:
        assert set(written["arrays"]) == set(back.files) == {name for name in theirs.files if name.startswith("w.")}
        for name in back.files:
            assert np.array_equal(back[name].reshape(theirs[name].shape), theirs[name]), name


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("terraformer", []),
        ("scaling", []),
        ("transformer", ["positions.kind=learned"]),
        ("reformer", ["data.length=32", "positions.axial_shape=[4,8]"]),
    ],
)
def test_a_model_of_every_family_comes_back_from_the_authors_arrays(
    efftx, tmp_path: Path, model: str, own: list[str]
) -> None:
    words = (f"model={model}", "size=smoke", "data=text", "data.path=efftx:samples/c4")
    trained = efftx("train", *words, *own, "training.steps=2", "schedule.warmup=1", "evaluation.every=2")
    efftx("export", "trax", trained["run"], tmp_path / "theirs.npz")
    imported = efftx("import", "trax", tmp_path / "theirs.npz", *words, "evaluation.every=2")
    assert imported["metrics"]["loss"] == trained["metrics"]["loss"]


SHAPES = (
    *("d_model=32", "d_ff=64", "n_heads=2", "d_head=16", "n_layers=2", "positions.kind=learned", "schedule.warmup=1"),
    *("positions.max_len=64", "reversible.enabled=true", "reversible.merge=concat", "attention_bias=false"),
)
"""What the import reads off the arrays, for a training from them."""


def test_a_folder_of_transformers_becomes_a_run_and_goes_back(efftx, tmp_path: Path) -> None:
    imported = efftx("import", "hf", HF, *HF_WORDS)
    assert efftx("sample", imported["run"], "prompt=0 1 2", "max_new=3")["samples"]
    efftx("export", "hf", imported["run"], tmp_path / "back")
    theirs, back = (load_file(folder / "model.safetensors") for folder in (HF, tmp_path / "back"))
    assert back.keys() == theirs.keys()
    for name in back:
        assert torch.equal(back[name], theirs[name]), name
    there, here = (json.loads((folder / "config.json").read_text()) for folder in (HF, tmp_path / "back"))
    training = ("hidden_dropout_prob", "local_attention_probs_dropout_prob", "lsh_attention_probs_dropout_prob")
    shared = here.keys() & there.keys() - {"max_position_embeddings", *training}
    assert {key: here[key] for key in shared} == {key: there[key] for key in shared}
    assert efftx("import", "hf", tmp_path / "back", *HF_WORDS)["metrics"] == imported["metrics"]


def test_a_row_so_short_that_nothing_hashes_is_no_mistake_of_the_user(efftx) -> None:
    assert efftx("import", "hf", HF, *HF_WORDS, "data.length=8")["metrics"]


def test_tokens_in_front_of_the_datas_are_left_out(efftx) -> None:
    words = [word.replace("n_symbols=39", "n_symbols=37") for word in HF_WORDS]
    assert efftx("import", "hf", HF, *words, "first_token=2")["metrics"]


def test_import_says_what_it_read_off_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "trax", str(LM), *LM_WORDS]) == 0
    assert "Read off the weights: n_layers=2 d_model=32 n_heads=2 d_head=16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reformer_lm_lsh_axial", {"positions.axial_shape=[8,8]", "positions.axial_dims=[16,16]", "d_ff=64"}),
        ("reformer_lm_self_fixedbase", {"positions.kind=digits", "positions.n_digits=8", "reversible.merge=concat"}),
        (
            "terraformer_sparse",
            {"sparse_ff.N=8", "sparse_qkv.S=4", "sparse_qkv.F=3", "sparse_loss.S=4", "attention_bias=true"},
        ),
        ("terraformer_self_dense", {"reversible.encoder=merged", "n_heads=4", "d_head=8", "positions.kind=digits"}),
        ("terraformer_lsh", {"stack=concatenated", "n_encoder_layers=1", "sparse_ff.rank='8'"}),
    ],
)
def test_shapes_say_what_the_model_is(golden, name: str, words: set[str]) -> None:
    arrays = {name: array for name, array in golden(name).items() if name.startswith("w.")}
    assert words <= set(architecture_of(arrays))


def test_another_vocabulary_is_refused_and_no_directory_is_left(refused, tmp_path: Path) -> None:
    said = refused("import", "hf", HF, *HF_WORDS, "data.n_symbols=30", f"run_dir={tmp_path / 'run'}")
    assert "'embedding.weight' has shape (40, 32) in the checkpoint and (31, 32) in the model" in said
    assert not (tmp_path / "run").exists()


def test_a_hand_written_origin_holds_no_weights(refused) -> None:
    said = refused("train", "model=transformer", "data=duplicate", "size=smoke", "imported=abc")
    assert "The weights that imported= names are not in" in said


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "as a pickle alone"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is no JSON object"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "model_type=bert"),
    ],
)
def test_a_folder_that_is_none_of_transformers_is_refused(
    refused, tmp_path: Path, make: Callable[[Path], object], named: str
) -> None:
    shutil.copytree(HF, tmp_path / "model")
    make(tmp_path / "model")
    assert named in refused("import", "hf", tmp_path / "model", *HF_WORDS)


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"x": np.zeros(3)}, "no array whose name begins with 'w.'"),
        ({"w.embedding": np.array([{}, {}], dtype=object)}, "it is no .npz of arrays of numbers"),
        ({"w.nothing": np.zeros(3)}, "No weight is called 'w.nothing' by the authors"),
    ],
)
def test_a_file_of_other_arrays_is_refused(refused, tmp_path: Path, arrays: dict[str, Any], named: str) -> None:
    np.savez(tmp_path / "file.npz", **arrays)
    assert named in refused("import", "trax", tmp_path / "file.npz", *LM_WORDS)


def test_what_is_no_file_of_arrays_is_refused(refused, tmp_path: Path) -> None:
    assert "There is no file" in refused("import", "trax", tmp_path / "none.npz", *LM_WORDS)
    for content in (b"PK\x03\x04 cut off", b"# A page of text"):
        (tmp_path / "file.npz").write_bytes(content)
        assert "it is no .npz of arrays of numbers" in refused("import", "trax", tmp_path / "file.npz", *LM_WORDS)


@pytest.mark.parametrize("words", [["import"], ["import", "hf"], ["import", "pickle", "x"], ["export", "trax", "run"]])
def test_a_command_that_lacks_something_says_its_form(refused, words: list[str]) -> None:
    assert "Say " in refused(*words)


def test_a_run_that_is_none_and_a_file_of_another_kind_are_refused(refused, efftx, tmp_path: Path) -> None:
    assert "is not a run directory" in refused("export", "trax", tmp_path, tmp_path / "x.npz")
    imported = efftx("import", "trax", LM, *LM_WORDS)
    told = refused("export", "trax", imported["run"], tmp_path / "x")
    assert "must end in .npz" in told
    assert "Call it x.npz." in told
    (tmp_path / "file").touch()
    for told in (
        refused("export", "trax", imported["run"], tmp_path / "no" / "x.npz"),
        refused("export", "trax", imported["run"], tmp_path / "file" / "x.npz"),
    ):
        assert "cannot write under" in told
        assert "or give another path." in told
    assert "whole number" in refused("import", "trax", LM, *LM_WORDS, "first_token=2")


def test_a_run_with_an_average_of_its_weights_is_exported_as_it_is_evaluated(efftx, tmp_path: Path) -> None:
    words = ("model=transformer", "data=duplicate", "size=smoke", "threads=1", "positions.kind=learned")
    run = efftx("train", *words, "training.steps=4", "schedule.warmup=1", "ema.decay=0.9")["run"]
    efftx("export", "trax", run, tmp_path / "average.npz")
    average = efftx_load(run).model.state_dict()["embedding.weight"]
    with np.load(tmp_path / "average.npz") as arrays:
        assert np.array_equal(arrays["w.embedding"], average.numpy())


def test_weights_that_are_no_numbers_are_refused_by_file_and_array(refused, tmp_path: Path) -> None:
    with np.load(LM) as theirs:
        arrays = {name: theirs[name].copy() for name in theirs.files}
    broken = next(name for name in arrays if name.startswith("w.layer1"))
    arrays[broken].reshape(-1)[0] = np.nan
    np.savez(tmp_path / "nan.npz", **arrays)
    message = refused("import", "trax", tmp_path / "nan.npz", *LM_WORDS)
    assert f"nan.npz: the array '{broken}' holds a NaN or an infinity." in message

    folder = Path(shutil.copytree(HF, tmp_path / "hf"))
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = torch.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"the array '{name}' holds a NaN or an infinity." in refused("import", "hf", folder, *HF_WORDS)


@pytest.mark.parametrize(("kind", "place"), [("trax", "back.npz"), ("hf", "back")])
def test_an_export_that_cannot_be_written_is_one_message_and_leaves_nothing(
    refused, efftx, tmp_path: Path, kind: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run = efftx("import", kind, *((LM, *LM_WORDS) if kind == "trax" else (HF, *HF_WORDS)))["run"]
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        message = refused("export", kind, run, tmp_path / place)
    assert "No space left on device" in message
    assert "then give the same command again" in " ".join(message.split())
    assert not [path for path in tmp_path.rglob("*") if "back" in str(path.relative_to(tmp_path))]
    taken = tmp_path / place if kind == "trax" else tmp_path / place / "model.safetensors"
    taken.mkdir(parents=True)
    assert "cannot write" in refused("export", kind, run, tmp_path / place)


def test_an_export_that_fails_half_way_leaves_the_earlier_one(
    refused, efftx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = efftx("import", "hf", HF, *HF_WORDS)["run"]
    efftx("export", "hf", run, tmp_path / "back")
    before = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()}

    def no_numbers(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", no_numbers)  # the second of the two files
    refused("export", "hf", run, tmp_path / "back")
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == before

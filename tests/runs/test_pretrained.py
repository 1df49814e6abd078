"""Fine-tuning: a training that starts from a finished run's weights, in the run's vocabulary."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from efftx.config.compose import compose
from efftx.config.hash import config_hash
from efftx.config.schema import Config
from efftx.core.artifact import read_document, write_document
from efftx.core.files import DamagedFileError
from efftx.data.dataset import open_dataset
from efftx.data.samples import resolve_path
from efftx.data.sentencepiece_model import train_sentencepiece
from efftx.data.tokenizer import VOCABULARY_FILE
from efftx.errors import UserError
from efftx.models.build import build_model
from efftx.runs.checkpoint import load_latest
from efftx.runs.pretrained import compose_run, keep_vocabulary, load_pretrained, read_vocabulary_file, run_hash
from efftx.training.evaluation import evaluate_run
from efftx.training.loop import train

COMMON = ["model=scaling", "size=smoke", "threads=1", "training.steps=3", "evaluation.batches=1"]
VOCABULARY = ["data.tokenizer=unigram", "data.vocab_size=130"]
C4 = ["data=c4", "data.path=efftx:samples/c4", "data.length=64", "data.target_length=32", *VOCABULARY]
RTE = ["data=glue", "data.path=efftx:samples/glue", "data.length=48", *VOCABULARY]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(compose([*COMMON, *C4]), tmp_path_factory.mktemp("before") / "run", silent=True).run


def rte(run: Path, *more: str) -> Config:
    return compose_run([*COMMON, *RTE, f"pretrained={run}", *more])


def test_the_first_weights_are_those_the_run_ended_with_and_positions_are_cut(pretrained: Path) -> None:
    config = rte(pretrained)
    dataset = open_dataset(config.data, config.objective)
    model = build_model(config, dataset.vocab_size, torch.device("cpu"))
    load_pretrained(model, pretrained, dataset)
    checkpoint = load_latest(pretrained / "checkpoints", read_only=True)
    assert checkpoint is not None
    for name, weight in model.named_parameters():
        assert torch.equal(weight, checkpoint.model[name][: weight.shape[0]]), name
    assert (model.encoder_positions.table.shape[0], checkpoint.model["encoder_positions.table"].shape[0]) == (48, 64)


def test_text_is_read_in_the_vocabulary_of_the_run(pretrained: Path, tmp_path: Path) -> None:
    fine = train(rte(pretrained), tmp_path / "fine", silent=True)
    kept = (pretrained / VOCABULARY_FILE).read_bytes()
    assert (fine.run / VOCABULARY_FILE).read_bytes() == kept
    alone = open_dataset(compose([*COMMON, *RTE]).data, "seq2seq")
    assert fine.data["checksum"] != alone.checksum
    assert fine.metrics["chance_accuracy"] == alone.chance_accuracy
    # Evaluated under another configuration, the fine-tuned weights still read their own vocabulary.
    assert evaluate_run(fine.run, compose([*COMMON, *RTE])) == fine.metrics


def test_a_fine_tuning_differs_from_one_afresh_and_goes_on_without_loading_again(
    pretrained: Path, tmp_path: Path
) -> None:
    fine = train(rte(pretrained), tmp_path / "fine", silent=True)
    own = ["data.tokenizer_path=" + str(pretrained / VOCABULARY_FILE)]
    afresh = train(compose([*COMMON, *RTE, *own]), tmp_path / "afresh", silent=True)
    assert afresh.data == fine.data
    assert afresh.first_losses != fine.first_losses
    (fine.run / "result.json").unlink()
    again = train(rte(pretrained), fine.run, silent=True)
    assert (again.resumed_from, again.weights_sha256) == (3, fine.weights_sha256)


def test_the_hash_holds_the_runs_own_hash_and_not_its_place(pretrained: Path, tmp_path: Path) -> None:
    config = rte(pretrained)
    dataset = open_dataset(config.data, config.objective)
    moved = Path(shutil.copytree(pretrained, tmp_path / "moved"))
    reference = run_hash(config, dataset)
    assert run_hash(rte(moved), dataset) == reference
    afresh = compose([*COMMON, *RTE])
    assert config_hash(afresh, dataset) != reference
    document = read_document(moved / "config.json")
    assert config_hash(afresh, dataset, document["hash"]) == reference
    write_document(moved / "config.json", {**document, "hash": "another"})
    assert run_hash(rte(moved), dataset) != reference


def test_a_vocabulary_that_has_changed_is_noticed_and_the_same_training_writes_it_anew(
    pretrained: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(pretrained, tmp_path / "run"))
    whole = (run / VOCABULARY_FILE).read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    (run / VOCABULARY_FILE).write_bytes(changed)
    with pytest.raises(DamagedFileError, match=VOCABULARY_FILE):
        rte(run)
    config = compose([*COMMON, *C4])
    keep_vocabulary(run, open_dataset(config.data, config.objective))
    assert read_vocabulary_file(run) == whole


def test_a_finished_run_without_its_vocabulary_gives_its_result_where_nothing_can_be_written(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(pretrained, tmp_path / "run"))
    (run / VOCABULARY_FILE).unlink()

    def read_only(path: Path, data: bytes) -> None:
        raise OSError(errno.EROFS, "read-only")

    with monkeypatch.context() as patched:
        patched.setattr("efftx.runs.pretrained.write_checked", read_only)
        assert train(compose([*COMMON, *C4]), run, silent=True).step == 3
    train(compose([*COMMON, *C4]), run, silent=True)
    assert read_vocabulary_file(run) == read_vocabulary_file(pretrained)


def test_the_checkpoint_before_a_damaged_one_never_passes_for_the_runs_own(pretrained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(pretrained, tmp_path / "run"))
    (last,) = (run / "checkpoints").glob("step-*")
    shutil.copytree(last, last.with_name("step-00000001"))
    model = bytearray((last / "model.safetensors").read_bytes())
    model[-1] ^= 1
    (last / "model.safetensors").write_bytes(model)
    config = compose([*COMMON, *C4])
    with pytest.raises(UserError, match=f"{last.name} is damaged") as caught:
        evaluate_run(run, config)
    assert "result.json" in caught.value.hint
    with pytest.raises(UserError, match=f"{last.name} is damaged"):
        train(rte(run), tmp_path / "fine-tuned", silent=True)


def test_a_run_that_is_not_there_or_not_finished_is_refused(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        rte(tmp_path / "nowhere")
    half = Path(shutil.copytree(pretrained, tmp_path / "half"))
    (half / "result.json").unlink()
    with pytest.raises(UserError, match="not come to its end"):
        rte(half)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.target_length=40"], "weight 'positions.table' has 32 positions"),
        (["d_ff=256"], "The weight '.*' has shape"),
        (["sru.n_layers=1"], "Only the model has the weight 'blocks.0.feedforward.beside"),
    ],
)
def test_another_model_is_refused(pretrained: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(rte(pretrained, *words), tmp_path / "fine", silent=True)


@pytest.mark.parametrize(("n_pieces", "message"), [(130, "not those that"), (120, "knows 230 tokens")])
def test_another_vocabulary_is_refused(pretrained: Path, tmp_path: Path, n_pieces: int, message: str) -> None:
    folder = resolve_path("efftx:samples/summarization", "summarization")
    assert folder is not None
    texts = [json.loads(line)["source"] for line in (folder / "train.jsonl").read_text().splitlines()]
    other = tmp_path / "other.model"
    other.write_bytes(train_sentencepiece(n_pieces, texts))
    words = [f"data.tokenizer_path={other}", f"data.vocab_size={n_pieces}"]
    with pytest.raises(UserError, match=message):
        train(rte(pretrained, *words), tmp_path / "fine", silent=True)

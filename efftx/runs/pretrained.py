"""A training that starts from the weights of a finished run: which run it is, its vocabulary, its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from efftx.config.checks import check_config
from efftx.config.compose import compose
from efftx.config.hash import config_hash
from efftx.config.schema import Config
from efftx.core.artifact import read_checked, write_checked
from efftx.core.files import DamagedFileError, writing
from efftx.data.dataset import Dataset
from efftx.data.tokenizer import VOCABULARY_FILE, VocabularyConfig, read_vocabulary
from efftx.errors import UserError
from efftx.models.conversion import load_weights
from efftx.runs.checkpoint import Checkpoint, load_latest
from efftx.runs.run_directory import RESULT_FILE, read_config, read_result

_TRAINED = ("unigram", "bpe")
_POSITIONS = "positions.table"


def compose_run(overrides: Sequence[str] = (), *, config_dirs: Iterable[str | Path] = ()) -> Config:
    """As `compose`; where `pretrained` is given, with the vocabulary of that run (`start_from`)."""
    return resolved(compose(overrides, config_dirs=config_dirs))


def resolved(config: Config) -> Config:
    """`config` with the vocabulary of the run that it starts from, and checked again; itself where there is none."""
    if config.pretrained is None:
        return config
    config = start_from(config, Path(config.pretrained))
    check_config(config)
    return config


def run_hash(config: Config, dataset: Dataset) -> str:
    """`config_hash`, of the run that `config` starts from too; UserError where that is not there, or not finished."""
    return config_hash(config, dataset, None if config.pretrained is None else hash_of_run(Path(config.pretrained)))


def hash_of_run(run: Path) -> str:
    """The config hash of the finished run at `run`; UserError where there is none, or it has not come to its end."""
    stored = read_config(run)
    if stored is None:
        raise UserError(
            "missing_file",
            f"pretrained={run} is not a run directory.",
            "Give the folder that `efftx train` printed, such as runs/scaling-c4-0123456789ab.",
        )
    if read_result(run) is None:
        raise UserError(
            "not_finished",
            f"pretrained={run} has not come to its end.",
            "Start the same training again: it goes on from its last checkpoint.",
        )
    return stored[1]


def start_from(config: Config, run: Path) -> Config:
    """`config` as a training that starts from `run`: it reads the run's vocabulary where it would train one.

    UserError as `hash_of_run`.
    """
    hash_of_run(run)
    return with_vocabulary_of(replace(config, pretrained=str(run)), run)


def with_vocabulary_of(config: Config, run: Path) -> Config:
    """`config` with the trained vocabulary that `run` kept, where its text is to be read in one of the same kind.

    A file given in `data.tokenizer_path` stays. DamagedFileError where the run's has changed.
    """
    data, stored = config.data, read_config(run)
    if stored is None or not isinstance(data, VocabularyConfig) or data.tokenizer_path is not None:
        return config
    its = stored[0]["data"].get("tokenizer")
    if data.tokenizer not in _TRAINED or its != data.tokenizer or read_vocabulary_file(run) is None:
        return config
    return replace(config, data=replace(data, tokenizer_path=str(run / VOCABULARY_FILE)))


def keep_vocabulary(run: Path, dataset: Dataset) -> None:
    """Write the pieces of `dataset` into the run's directory, a damaged file anew; nothing where its tokens are bytes
    or symbols.
    """
    model = _model_of(dataset)
    if model is None:
        return
    try:
        there = read_vocabulary_file(run)
    except DamagedFileError:
        there = None
    if there != model:
        with writing(run):
            write_checked(run / VOCABULARY_FILE, model)


def read_vocabulary_file(run: Path) -> bytes | None:
    """The file of the pieces that the run at `run` keeps, None where it has none; DamagedFileError."""
    return read_checked(run / VOCABULARY_FILE, "Start the same training again: it writes the file anew.")


def final_checkpoint(run: Path) -> Checkpoint:
    """The checkpoint that the run at `run` ended with; UserError where there is none, or a damaged one.

    Never the one before a damaged one: what is measured of it would pass for the run's own.
    """
    damage: list[str] = []
    checkpoint = load_latest(run / "checkpoints", on_damage=damage.append, read_only=True)
    if damage:
        hint = f"Remove {run / RESULT_FILE}: the same training then goes on from the checkpoint before."
        raise UserError("damaged_file", damage[0].partition(";")[0] + ".", hint)
    if checkpoint is None:
        raise UserError("missing_file", f"The run {run} has no checkpoint.", "Train it first: `efftx train`.")
    return checkpoint


def load_pretrained(model: nn.Module, run: Path, dataset: Dataset) -> None:
    """Copies the weights of the last checkpoint of `run` into `model`.

    Both have the same weights, but for tables of learned positions: a longer one is cut to the model's rows, its first
    positions are kept. UserError, naming the weight, for any other difference, and for another vocabulary.
    """
    checkpoint = final_checkpoint(run)
    _check_vocabulary(run, checkpoint.model, dataset)
    load_weights(model, _cut_positions(model, checkpoint.model, run), None)


def _cut_positions(model: nn.Module, weights: Mapping[str, Tensor], run: Path) -> dict[str, Tensor]:
    cut = dict(weights)
    for name, parameter in model.named_parameters():
        if not name.endswith(_POSITIONS) or name not in weights:
            continue
        n_there, n_here = weights[name].shape[0], parameter.shape[0]
        if n_here > n_there:
            raise UserError(
                "other_model",
                f"The weight '{name}' has {n_there} positions in pretrained={run}, and {n_here} are needed.",
                f"Pre-train with positions.max_len={n_here} or more, or shorten data.length or data.target_length.",
            )
        cut[name] = weights[name][:n_here]
    return cut


def _check_vocabulary(run: Path, weights: Mapping[str, Tensor], dataset: Dataset) -> None:
    n_tokens = weights["embedding.weight"].shape[0]
    if n_tokens != dataset.vocab_size:
        raise UserError(
            "other_vocabulary",
            f"pretrained={run} knows {n_tokens} tokens, but {dataset.variant} has {dataset.vocab_size}.",
            "Read both texts with the same data.tokenizer and data.vocab_size.",
        )
    there, here = read_vocabulary_file(run), _model_of(dataset)
    if there == here:
        return
    if there is None or here is None or _pieces(run, there) != dataset.vocabulary.pieces_sha256:  # type: ignore[attr-defined]
        raise UserError(
            "other_vocabulary",
            f"The tokens of {dataset.variant} are not those that pretrained={run} was trained on.",
            f"Leave data.tokenizer_path out and use the run's data.tokenizer, or give its {VOCABULARY_FILE}.",
        )


def _model_of(dataset: Dataset) -> bytes | None:
    return getattr(getattr(dataset, "vocabulary", None), "model", None)


def _pieces(run: Path, model: bytes) -> str:
    stored = read_config(run)
    assert stored is not None, "hash_of_run has asked"
    return read_vocabulary(model, stored[0]["data"]["tokenizer"], str(run / VOCABULARY_FILE)).pieces_sha256

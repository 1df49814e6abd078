"""What a data set is to the rest of efftx: a name, a variant, a checksum, and batches as a function of (seed, step).

Shape suffixes: B rows of a batch, L target tokens of a row, E input tokens of a row.

Adding a data set is one module with a `SOURCE`, one line in `_MODULES` and one file in `conf/data/`.
"""

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from efftx.data.prepared import SPLITS, Prepared
from efftx.data.rendering import Rendering
from efftx.errors import UserError, nearest

if TYPE_CHECKING:
    import torch

# Modules are named, not imported, so that one data set's dependencies are no burden on another.
_MODULES = {
    "c4": "efftx.data.c4",
    "cifar10": "efftx.data.cifar10",
    "copy_add": "efftx.data.copy_add",
    "duplicate": "efftx.data.duplicate",
    "enwik8": "efftx.data.enwik8",
    "glue": "efftx.data.glue",
    "imagenet64": "efftx.data.imagenet64",
    "images": "efftx.data.pictures",
    "jsonl": "efftx.data.jsonl",
    "music": "efftx.data.music",
    "photos": "efftx.data.photos",
    "stdlib": "efftx.data.stdlib",
    "summarization": "efftx.data.summarization",
    "wmt14": "efftx.data.wmt14",
    "grammar": "efftx.data.grammar",
    "text": "efftx.data.text",
}


@dataclass
class DataConfig:
    """The `data` node: which data set, tokens in a row, and the file or folder to read where there is a choice.

    With an encoder `length` is its tokens and `target_length` the decoder's; 0 is the smallest number that suffices.
    """

    name: str
    length: int
    path: str | None = None
    target_length: int = 0


@dataclass(frozen=True)
class Batch:
    """Target tokens (int64) and their weights (float32): loss and accuracy count where the weight is above 0.

    `inputs_BE` (int64) are the encoder's tokens, padded with 0 at the end only; None where there is no encoder.
    """

    tokens_BL: "torch.Tensor"  # noqa: N815 - shape suffix
    weights_BL: "torch.Tensor"  # noqa: N815
    inputs_BE: "torch.Tensor | None" = None  # noqa: N815

    @classmethod
    def of(cls, tokens_BL: np.ndarray, weights_BL: np.ndarray, inputs_BE: np.ndarray | None = None) -> "Batch":
        """The batch of these arrays; weights may be bool."""
        from torch import from_numpy  # describing a data set needs no torch

        inputs = None if inputs_BE is None else from_numpy(inputs_BE)
        return cls(from_numpy(tokens_BL), from_numpy(weights_BL.astype(np.float32, copy=False)), inputs)

    @property
    def model_inputs(self) -> "tuple[torch.Tensor, ...]":
        """What a model reads: the tokens, and the encoder's where there is one."""
        return (self.tokens_BL,) if self.inputs_BE is None else (self.tokens_BL, self.inputs_BE)

    def map(self, function: Callable[["torch.Tensor"], "torch.Tensor"]) -> "Batch":
        """The batch of what `function` makes of each tensor."""
        inputs = None if self.inputs_BE is None else function(self.inputs_BE)
        return Batch(function(self.tokens_BL), function(self.weights_BL), inputs)

    def to(self, device: "torch.device") -> "Batch":
        """The batch on `device`."""
        return self.map(lambda tensor: tensor.to(device))


class Dataset(Protocol):
    """A data set that is ready to be read."""

    @property
    def name(self) -> str:
        """The word of `data=`."""
        ...

    @property
    def variant(self) -> str:
        """Which data exactly, `enwik8[:4150000]`: part of a record, never dropped beside a result."""
        ...

    @property
    def checksum(self) -> str:
        """SHA-256 in hex of the bytes, or of the generator's definition."""
        ...

    @property
    def vocab_size(self) -> int:
        """Tokens are 0 to vocab_size - 1."""
        ...

    @property
    def length(self) -> int:
        """Target tokens in a row."""
        ...

    @property
    def input_length(self) -> int:
        """Input tokens in a row, 0 where there is no encoder."""
        ...

    @property
    def unit(self) -> str:
        """The unit of the loss: `bits/dim` (a byte is a dimension) or `nats/token`."""
        ...

    @property
    def chance_accuracy(self) -> float | None:
        """Accuracy of a guess in %, None where the task has no such level; of labels that of the whole test split."""
        ...

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        """Batch number `step` of a split (train, valid, test): a pure function of its arguments.

        Valid and test batches do not depend on `seed`, so that every seed is evaluated on the same data.
        """
        ...

    def n_batches(self, split: str, batch_size: int) -> int | None:
        """How many batches cover the split once; None where it is drawn without end."""
        ...


class Opens(Protocol):
    """Opens a data set for one of its objectives."""

    def __call__(self, config: Any, objective: str = "lm") -> Dataset:
        """The data set, prepared if need be."""
        ...


class TellsVocabSize(Protocol):
    """Knows the number of tokens beforehand."""

    def __call__(self, config: Any, objective: str = "lm") -> int:
        """`Dataset.vocab_size` from the config alone; nothing is opened."""
        ...


class TellsRendering(Protocol):
    """Knows what the tokens of a config's data set stand for."""

    def __call__(self, config: Any, objective: str = "lm", model: bytes | None = None) -> Rendering:
        """`model` is the vocabulary's file as a run has kept it; UserError where one is needed and None is given."""
        ...


@dataclass(frozen=True)
class Source:
    """What a data set's module offers: how to open it, how to prepare its files (None: it needs none), and what it is.

    `rendering` is what its tokens become for people; nothing is opened for it.
    `objectives` (lm, span_corruption, seq2seq) are those it can be opened for. `variant`, `n_bytes` and `sha256` are
    what preparing it without `data.path` gives, as far as known beforehand; `targets` are the target tokens of a
    seq2seq row where `data.target_length` is 0. `endless`: valid and test are drawn without end (`n_batches` is None).
    `uncut`: rows have `targets` at least, since no answer is cut. `row_length`: tokens of a row where the data set
    alone says it (a picture's bytes), whatever `data.length` is. `own_length`: tokens of a row, and of its targets,
    where rows are sentences, which a model's preset does not lengthen (0: it does). `separators`: the tokens after
    which a row counts its places anew, for coupled positions; empty where its numbers have no places to share. `check`
    refuses, with a UserError, keys that cannot be, before anything is opened. `generates`: an evaluation has the model
    write texts, by which it is scored. `reads_files`: there may be a `data.path`; without `prepare` there is none.
    """

    name: str
    config: type[DataConfig]
    licence: str
    variant: str
    open: Opens
    vocab_size: TellsVocabSize
    rendering: TellsRendering
    objectives: tuple[str, ...] = ("lm",)
    prepare: Callable[[Any], Prepared] | None = None
    n_bytes: int | None = None
    sha256: str | None = None
    targets: Callable[[Any], int] | None = None
    endless: bool = False
    uncut: bool = False
    row_length: Callable[[Any], int] | None = None
    own_length: int = 0
    separators: Callable[[Any], tuple[int, ...]] = lambda config: ()
    check: Callable[[Any], None] = lambda config: None
    generates: bool = False
    reads_files: bool = True

    def target_length(self, config: Any, objective: str) -> int:
        """`Dataset.length` from the config alone: target tokens in a row; nothing is opened.

        `data.target_length`, or where that is 0 (`uncut`: or less than serves) the smallest number that serves;
        UserError where there is no such.
        """
        if objective == "lm":
            return int(config.length)
        if objective == "span_corruption":
            return int(config.n_targets())
        if config.target_length and not self.uncut:
            return int(config.target_length)
        if self.targets is None:
            message = f"data={self.name} needs data.target_length: its targets have no length of their own."
            raise UserError("bad_value", message, "Give the number of target tokens a row.")
        return self.targets(config)

    def check_objective(self, objective: str) -> None:
        """`UserError` unless the data set offers the objective."""
        if objective not in self.objectives:
            raise UserError(
                "bad_objective",
                f"data={self.name} does not offer objective={objective}.",
                f"It offers {' and '.join(self.objectives)}."
                + " A decoder takes that: stack=decoder, or model=transformer." * (self.objectives == ("lm",))
                + " An encoder takes its inputs: model=scaling or model=terraformer." * ("lm" not in self.objectives),
            )


def names() -> list[str]:
    """The names of all data sets."""
    return list(_MODULES)


def find_source(name: str) -> Source:
    """The source of a data set by its name; `UserError` where there is none."""
    if name not in _MODULES:
        raise UserError("unknown_data", f"There is no data set '{name}'.", nearest(name, _MODULES))
    return cast(Source, importlib.import_module(_MODULES[name]).SOURCE)


def open_dataset(config: DataConfig, objective: str = "lm") -> Dataset:
    """The data set that `config.name` says, prepared on first use under a file lock, for one of its objectives.

    `UserError` for an unknown name, an objective it does not offer, an impossible length, a missing, damaged or wrong
    file, no network, a full disk.
    """
    source = find_source(config.name)
    source.check_objective(objective)
    if config.length < 1:
        raise UserError("bad_value", f"data.length={config.length} must be at least 1.")
    if source.prepare is None:
        refuse_path(config)
    source.check(config)
    return source.open(config, objective)


def refuse_path(config: DataConfig) -> None:
    """`UserError` if a path is given to a data set that reads none."""
    if config.path is not None:
        raise UserError(
            "bad_value",
            f"data={config.name} reads no file, but data.path={config.path} is given.",
            "Leave data.path out, or choose another data set.",
        )


def notes_of(dataset: Dataset) -> tuple[str, ...]:
    """What a user should hear of the data that was read: what was left out, and what it is not known to be."""
    return getattr(dataset, "notes", ())


def check_split(split: str) -> None:
    """`UserError` unless `split` is train, valid or test."""
    if split not in SPLITS:
        raise UserError("bad_value", f"There is no split '{split}'.", nearest(split, SPLITS))


def draw(name: str, split: str, seed: int, step: int, count: int, below: int) -> np.ndarray:
    """`count` integers (int64) uniform in [0, below), a pure function of the arguments; fewer are a prefix of more.

    Valid and test ignore `seed`. The Philox key is a SHA-256 of the words, so that splits, seeds and steps have streams
    of their own; raw 64-bit words modulo `below` (bias under below / 2^64) stay the same over numpy versions, which
    `Generator.integers` does not promise.
    """
    check_split(split)
    words = f"efftx data {name} {split} {seed if split == 'train' else 'evaluation'} {step}"
    key = int.from_bytes(hashlib.sha256(words.encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(count)
    return (np.asarray(raw, dtype=np.uint64) % np.uint64(below)).astype(np.int64)

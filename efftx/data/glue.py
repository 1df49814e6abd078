"""GLUE's tasks on sentences (Wang et al. 2018; Scaling Transformers, table 4), text to text as T5 writes them.

A row is `rte sentence1: ... sentence2: ...` and its target the word of the label.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from efftx.data import samples
from efftx.data.dataset import Source
from efftx.data.pairs import Corpus, Document, TextPairs, counted, find_path, prepare_pairs
from efftx.data.prepared import Prepared, data_root
from efftx.data.samples import is_sample
from efftx.data.text_files import unpacked
from efftx.data.tokenizer import TextConfig, text_vocab_size, text_wording
from efftx.data.vocabulary import Vocabulary
from efftx.errors import UserError, nearest

LICENCE = "each task's own terms, research use; files are the user's own"
TENTH = 10
"""Where no file is left for validation, every tenth row of the training file is it."""


@dataclass(frozen=True)
class Task:
    """One task: T5's words for its fields -> columns, label -> word in the order of the classes (1 is GLUE's positive).

    `folder` is GLUE's own name, `stems` are the files of train, dev and test, `columns` those of a file without a
    header. Metrics as GLUE's.
    """

    folder: str
    fields: dict[str, str]
    label: str
    words: dict[str, str]
    metrics: tuple[str, ...] = ("accuracy",)
    stems: tuple[tuple[str, ...], ...] = (("train",), ("dev",), ("test",))
    columns: tuple[str, ...] = ()


_ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}
_MATCHED = (("train",), ("dev_matched",), ("test_matched",))
_COLA = (("in_domain_train", "train"), ("in_domain_dev", "dev"), ("out_of_domain_dev", "test"))

TASKS = {
    "cola": Task(
        folder="CoLA",
        fields={"sentence": "sentence"},
        label="label",
        words={"0": "unacceptable", "1": "acceptable"},
        metrics=("accuracy", "matthews"),
        stems=_COLA,
        columns=("source", "label", "mark", "sentence"),
    ),
    "mnli": Task(
        folder="MNLI",
        fields={"hypothesis": "sentence2", "premise": "sentence1"},
        label="gold_label",
        words={"entailment": "entailment", "neutral": "neutral", "contradiction": "contradiction"},
        stems=_MATCHED,
    ),
    "mrpc": Task(
        folder="MRPC",
        fields={"sentence1": "#1 String", "sentence2": "#2 String"},
        label="Quality",
        words={"0": "not_equivalent", "1": "equivalent"},
        metrics=("accuracy", "f1"),
    ),
    "qnli": Task("QNLI", {"question": "question", "sentence": "sentence"}, "label", _ENTAILMENT),
    "qqp": Task(
        folder="QQP",
        fields={"question1": "question1", "question2": "question2"},
        label="is_duplicate",
        words={"0": "not_duplicate", "1": "duplicate"},
        metrics=("accuracy", "f1"),
    ),
    "rte": Task("RTE", {"sentence1": "sentence1", "sentence2": "sentence2"}, "label", _ENTAILMENT),
    "sst2": Task(
        folder="SST-2",
        fields={"sentence": "sentence"},
        label="label",
        words={"0": "negative", "1": "positive"},
        columns=("sentence", "label"),
    ),
}


@dataclass
class GlueConfig(TextConfig):
    """The paper's rows have at most 256 tokens, padded to 512."""

    task: str = "rte"


@dataclass(frozen=True)
class Part:
    """Rows of a file: all (0), those whose number is a multiple of TENTH (1), or the others (-1)."""

    file: Path
    tenth: int = 0

    @property
    def called(self) -> str:
        """The file's stem, and which of its rows."""
        return self.file.name.split(".")[0] + {0: "", 1: " 10%", -1: " 90%"}[self.tenth]


def target_length(config: GlueConfig) -> int:
    """Room for the longest label in any vocabulary: no piece is shorter than a byte, and a blank and an end may come.

    `UserError` for an unknown task.
    """
    return max(len(word.encode()) for word in find_task(config).words.values()) + 2


def find_task(config: GlueConfig) -> Task:
    """The task that the config says; `UserError` where there is none of that name."""
    if config.task not in TASKS:
        raise UserError("bad_value", f"data.task={config.task} is not a task.", nearest(config.task, TASKS))
    return TASKS[config.task]


def prepare_glue(config: GlueConfig) -> Prepared:
    """The task's rows as tokens, prepared once; `UserError` for an unknown task, a missing file, a bad line."""
    return _prepare(config)[0]


def open_glue(config: GlueConfig, objective: str = "seq2seq") -> TextPairs:
    """The task in rows of `config.length` input tokens."""
    task = find_task(config)
    prepared, vocabulary = _prepare(config)
    return TextPairs(
        prepared,
        vocabulary,
        config,
        target_length=SOURCE.target_length(config, "seq2seq"),
        metrics=task.metrics,
        labels=tuple(task.words.values()),
    )


def _prepare(config: GlueConfig) -> tuple[Prepared, Vocabulary]:
    parts = find_parts(config)
    called = f"{config.path} {config.task}" if is_sample(config.path) else config.task
    files = "+".join(part.called for part in parts.values())
    return prepare_pairs(
        config,
        Corpus(
            files=[part.file for part in parts.values()],
            rule=[called, files],
            read=lambda split: _read(parts[split], config.task),
            called=lambda counts: f"{called} {counted(counts)} rows of {files}",
            licence=samples.LICENCE if is_sample(config.path) else LICENCE,
            hint=_expected(config),
        ),
    )


def as_text(name: str, row: dict[str, str]) -> Document:
    """A row of a task as T5 writes it (Raffel et al. 2020, appendix D), the label as a word."""
    task = TASKS[name]
    fields = (f"{word}: {row[column].strip()}" for word, column in task.fields.items())
    return Document(" ".join((name, *fields)), [task.words[row[task.label]]])


def find_parts(config: GlueConfig) -> dict[str, Part]:
    """Which rows of which files are train, valid and test.

    Train, dev and test where all three have labels. GLUE's own test files have none: then dev is test. Where no file is
    left for valid, it is every tenth row of the training file. `UserError` for missing files.
    """
    task = find_task(config)
    folder = _folder(config)
    train, dev, test = (_file(folder, stems) for stems in task.stems)
    if test is not None and task.label not in _header(test, task)[0]:
        test = None
    if train is None or (dev is None and test is None):
        raise UserError(
            "missing_file", f"{folder} has no labelled files of data.task={config.task}.", _expected(config)
        )
    if dev is not None and test is not None:
        return {"train": Part(train), "valid": Part(dev), "test": Part(test)}
    last = dev if test is None else test
    assert last is not None
    return {"train": Part(train, -1), "valid": Part(train, 1), "test": Part(last)}


def _folder(config: GlueConfig) -> Path:
    path = find_path(config, _expected(config))
    inner = (path / config.task, path / TASKS[config.task].folder)
    return next((folder for folder in inner if folder.is_dir()), path)


def _expected(config: GlueConfig) -> str:
    task = TASKS[config.task]
    names = ", ".join(f"{stems[-1]}.tsv" for stems in task.stems[:2])
    columns = ", ".join((*task.fields.values(), task.label))
    return (
        f"data.task={config.task} is read from GLUE's own folder {task.folder} ({names}; tab-separated, columns "
        f"{columns}). Set data.path to the folder that holds it, or put it into {data_root() / config.name}. "
        "efftx:samples/glue has a few rows of rte that efftx brings along."
    )


def _file(folder: Path, stems: tuple[str, ...]) -> Path | None:
    names = (f"{stem}.tsv{suffix}" for stem in stems for suffix in ("", ".gz", ".xz", ".bz2"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _header(file: Path, task: Task) -> tuple[tuple[str, ...], bool]:
    """The names of the columns, and whether the first line holds them; a file without a header has the task's."""
    with unpacked(file) as lines:
        first = tuple(_cells(next(iter(lines), b""), file, 1))
    if set(task.fields.values()) <= set(first):
        return first, True
    if len(first) == len(task.columns):
        return task.columns, False
    wanted = ", ".join((*task.fields.values(), task.label))
    raise UserError(
        "bad_document", f"{file}, line 1: there is no header with {wanted}.", "Cells are separated by tabs."
    )


def _read(part: Part, name: str) -> Iterator[Document | None]:
    """The part's rows in order, None for one with more or fewer cells than columns: QQP's files have some."""
    task = TASKS[name]
    columns, has_header = _header(part.file, task)
    if task.label not in columns:
        raise UserError("bad_document", f"{part.file}, line 1: there is no column {task.label}, so no label.")
    with unpacked(part.file) as lines:
        for number, line in enumerate(lines, 1 - has_header):
            if number == 0 or (part.tenth and (part.tenth == 1) != (number % TENTH == 0)):
                continue
            cells = _cells(line, part.file, number + has_header)
            row = dict(zip(columns, cells, strict=False))
            if len(cells) != len(columns):
                yield None
            elif row[task.label] not in task.words:
                place = f"{part.file}, line {number + has_header}"
                raise UserError("bad_document", f"{place}: '{row[task.label]}' is no label.", nearest("", task.words))
            else:
                yield as_text(name, row)


def _cells(line: bytes, file: Path, number: int) -> list[str]:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise UserError("bad_document", f"{file}, line {number} is not UTF-8.") from error


SOURCE = Source(
    name="glue",
    config=GlueConfig,
    licence=LICENCE,
    variant="glue[rte,t5-32000]",
    open=open_glue,
    vocab_size=text_vocab_size,
    wording=text_wording,
    objectives=("seq2seq",),
    prepare=prepare_glue,
    targets=target_length,
)

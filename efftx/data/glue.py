"""GLUE's tasks on sentences (Wang et al. 2018; Scaling Transformers, table 3), text to text as T5 writes them.

A row is `rte sentence1: ... sentence2: ...` and its target the word of the label. Rows come from GLUE's own files
(.tsv), or from the Hub and files as it has them (.parquet), whose labels are numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from efftx.data.dataset import Source
from efftx.data.document_files import DocumentFiles
from efftx.data.hub import HubRows
from efftx.data.json_lines import PARQUET, read_rows, whole_text
from efftx.data.known_files import are, not_known, own_files
from efftx.data.pairs import Corpus, Document, TextPairs, counted, prepare_pairs
from efftx.data.prepared import Prepared, data_root
from efftx.data.samples import find_path, is_sample, licence_and_origin, resolve_path
from efftx.data.text_files import read_lines, sums_of
from efftx.data.tokenizer import TextConfig, check_tokenizer, text_rendering, text_vocab_size
from efftx.data.vocabulary import Vocabulary
from efftx.errors import UserError, nearest

LICENCE = "each task's own terms, research use; files are the user's own"
TENTH = 10
"""Where no file is left for validation, every tenth row of the training file is it."""
HUB_PLACE, HUB_REVISION = "nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"


@dataclass(frozen=True)
class Task:
    """One task: T5's words for its fields -> columns, label -> word in the order of the classes (1 is GLUE's positive).

    `folder` is GLUE's own name, `stems` are the files of train, dev and test, `columns` those of a file without a
    header. On the Hub the columns are `hub_fields` (as `fields` where it is empty) and `label`, a number, the splits
    `hub_splits`. Metrics as GLUE's.
    """

    folder: str
    fields: dict[str, str]
    label: str
    words: dict[str, str]
    metrics: tuple[str, ...] = ("accuracy",)
    stems: tuple[tuple[str, ...], ...] = (("train",), ("dev",), ("test",))
    columns: tuple[str, ...] = ()
    hub_fields: dict[str, str] = field(default_factory=dict)
    hub_splits: tuple[str, str, str] = ("train", "validation", "test")


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
        hub_fields={"hypothesis": "hypothesis", "premise": "premise"},
        hub_splits=("train", "validation_matched", "test_matched"),
    ),
    "mrpc": Task(
        folder="MRPC",
        fields={"sentence1": "#1 String", "sentence2": "#2 String"},
        label="Quality",
        words={"0": "not_equivalent", "1": "equivalent"},
        metrics=("accuracy", "f1"),
        hub_fields={"sentence1": "sentence1", "sentence2": "sentence2"},
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


Rows = Iterator[Document | None]


@dataclass(frozen=True)
class Part:
    """Rows of one table: all (0), those whose number is a multiple of TENTH (1), or the others (-1).

    `read` gives the table's rows, `stem` is its name, `files` hold it (none: it is on the Hub).
    """

    stem: str
    read: Callable[[], Rows]
    files: tuple[Path, ...] = ()
    tenth: int = 0

    @property
    def called(self) -> str:
        """The table's name, and which of its rows."""
        return self.stem + {0: "", 1: " 10%", -1: " 90%"}[self.tenth]

    def rows(self) -> Rows:
        """The part's rows in order; None in place of one that cannot be read."""
        for number, row in enumerate(self.read(), 1):
            if not self.tenth or (self.tenth == 1) == (number % TENTH == 0):
                yield row


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
    task = find_task(config)
    if resolve_path(config.path, config.name) is None:
        on_the_hub = HubRows(HUB_PLACE, config.task, HUB_REVISION)
        parts = _parts(task, [_hub_part(task, config, on_the_hub, split) for split in task.hub_splits])
        assert parts is not None
        called, by_split, origin = config.task, list[str](), on_the_hub.origin
        notes: tuple[str, ...] = ()
        rule: list[Any] = ["hub", HUB_PLACE, HUB_REVISION, config.task]
        licence = LICENCE
    else:
        parts = find_parts(config)
        files = [file for part in parts.values() for file in part.files]
        sums = sums_of(files, _expected(config))
        by_split = DocumentFiles({split: list(part.files) for split, part in parts.items()}).by_split(sums)
        sample = is_sample(config.path)
        known = sample or are(f"{config.name} {config.task}", sums)
        called = f"{config.path} {config.task}" if sample else config.task
        if not known:
            unique = list(dict.fromkeys(zip(files, sums, strict=True)))
            called = f"{own_files([f for f, _ in unique], [s for _, s in unique])} in the form of {config.task}"
        notes = () if known else (not_known(config.path, f"GLUE's {config.task}"),)
        rule = [called]
        licence, origin = licence_and_origin(config.path, LICENCE).values()
    tables = "+".join(part.called for part in parts.values())
    return prepare_pairs(
        config,
        Corpus(
            sums=by_split,
            rule=[*rule, tables],
            read=lambda split: parts[split].rows(),
            called=lambda counts: f"{called} {counted(counts)} rows of {tables}",
            licence=licence,
            origin=origin,
            notes=notes,
        ),
    )


def as_text(name: str, row: Mapping[str, Any], *, hub: bool = False) -> Document:
    """A row of a task as T5 writes it (Raffel et al. 2020, appendix D), the label as a word; `hub`: a row of the Hub's.

    KeyError for an unknown label.
    """
    task = TASKS[name]
    columns = (hub and task.hub_fields) or task.fields
    label = task.words[row[task.label]] if not hub else dict(enumerate(task.words.values()))[row["label"]]
    return Document(" ".join((name, *(f"{word}: {row[its].strip()}" for word, its in columns.items()))), [label])


def fields_of(name: str, source: str) -> tuple[str, ...]:
    """The sentences of a source that `as_text` wrote, without the task's words before them."""
    rest = f" {source.removeprefix(f'{name} ')}"
    parts = []
    for word in TASKS[name].fields:
        before, _, rest = rest.partition(f" {word}: ")
        parts.append(before)
    return (*parts[1:], rest)


def find_parts(config: GlueConfig) -> dict[str, Part]:
    """Which rows of which files are train, valid and test.

    Train, dev and test where all three have labels. GLUE's own test files have none: then dev is test. Where no file is
    left for valid, it is every tenth row of the training file. `UserError` for missing files.
    """
    task = find_task(config)
    folder = _folder(config)
    tables = [_table(folder, task, config.task, i) for i in range(3)]
    if (parts := _parts(task, tables)) is None:
        message = f"{folder} has no labelled files of data.task={config.task}."
        raise UserError("missing_file", message, _expected(config))
    return parts


def _parts(task: Task, tables: list[Part | None]) -> dict[str, Part] | None:
    """The parts of train, dev and test, of which the last may be missing or without labels; None where they are."""
    train, dev, test = tables
    if test is not None and not _has_labels(task, test):
        test = None
    if train is None or (dev is None and test is None):
        return None
    if dev is not None and test is not None:
        return {"train": train, "valid": dev, "test": test}
    last = dev if test is None else test
    assert last is not None
    return {"train": replace(train, tenth=-1), "valid": replace(train, tenth=1), "test": last}


def _has_labels(task: Task, table: Part) -> bool:
    """Whether a table has the column of labels, and in Parquet a label in its first row: the Hub writes -1 for none."""
    if not table.files or table.files[0].suffix == PARQUET:
        return table.files != () and any(row is not None for row in islice(table.read(), 1))
    return task.label in _header(table.files[0], task)[0]


def _table(folder: Path, task: Task, name: str, which: int) -> Part | None:
    """Train (0), dev (1) or test (2) in a folder, as GLUE's .tsv or the Hub's .parquet; None where there is none."""
    names = (f"{stem}.tsv{suffix}" for stem in task.stems[which] for suffix in ("", ".gz", ".xz", ".bz2"))
    if tsv := next((folder / its for its in names if (folder / its).is_file()), None):
        return Part(tsv.name.split(".")[0], lambda: _read(tsv, name), (tsv,))
    split = task.hub_splits[which]
    if not (shards := sorted([*folder.glob(f"{split}-*{PARQUET}"), *folder.glob(f"{split}{PARQUET}")])):
        return None

    def read() -> Rows:
        for file in shards:
            for number, row in enumerate(read_rows(file), 1):
                yield _hub_row(name, row or {}, f"{file}, row {number}")

    return Part(split, read, tuple(shards))


def _hub_part(task: Task, config: GlueConfig, table: HubRows, split: str) -> Part:
    def read() -> Rows:
        for number, row in enumerate(table.rows(split, _expected(config)), 1):
            yield _hub_row(config.task, row, f"{table.place} {split}, row {number}")

    return Part(split, read)


def _hub_row(name: str, row: Mapping[str, Any], place: str) -> Document | None:
    """A row of the Hub's as a document, None where it has no label (-1); `UserError` where a column is missing."""
    if row.get("label") == -1:
        return None
    try:
        document = as_text(name, row, hub=True)
    except (KeyError, AttributeError) as error:
        fields = TASKS[name].hub_fields or TASKS[name].fields
        wanted = ", ".join((*fields.values(), "label"))
        message = f"{place} is no row of data.task={name}: {wanted} are needed."
        raise UserError("bad_document", message, f"It has: {', '.join(row)}.") from error
    whole_text(document.source, place)
    return document


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
        f"{columns}) or the Hub's {config.task} (train-00000-of-00001.parquet, ...). Set data.path to the folder that "
        f"holds it, or put it into {data_root() / config.name}; without a path it is read from the Hub. "
        "efftx:samples/glue has a few rows of rte that efftx brings along."
    )


def _header(file: Path, task: Task) -> tuple[tuple[str, ...], bool]:
    """The names of the columns, and whether the first line holds them; a file without a header has the task's."""
    first = tuple(_cells(next(read_lines(file), b""), file, 1))
    while first and not first[-1].strip():  # a tab at the line's end begins no column
        first = first[:-1]
    if set(task.fields.values()) <= set(first):
        return first, True
    if first and len(first) == len(task.columns):
        return task.columns, False
    wanted = ", ".join((*task.fields.values(), task.label))
    raise UserError(
        "bad_document", f"{file}, line 1: there is no header with {wanted}.", "Cells are separated by tabs."
    )


def _read(file: Path, name: str) -> Rows:
    """The file's rows in order, None for one with more or fewer cells than columns: QQP's files have some.

    Cells without text past the last column are none: a header or a row may end with a tab.
    """
    task = TASKS[name]
    columns, has_header = _header(file, task)
    if task.label not in columns:
        raise UserError("bad_document", f"{file}, line 1: there is no column {task.label}, so no label.")
    for number, line in enumerate(read_lines(file), 1):
        if number == 1 and has_header:
            continue
        cells = _cells(line, file, number)
        row = dict(zip(columns, cells, strict=False))
        if len(cells) < len(columns) or "".join(cells[len(columns) :]).strip():
            yield None
        elif row[task.label] not in task.words:
            message = f"{file}, line {number}: '{row[task.label][:40]}' is no label."
            raise UserError("bad_document", message, nearest("", task.words))
        else:
            yield as_text(name, row)


def _cells(line: bytes, file: Path, number: int) -> list[str]:
    try:
        return line.decode().rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise UserError("bad_document", f"{file}, line {number} is not UTF-8.", "Convert it to UTF-8.") from error


SOURCE = Source(
    name="glue",
    config=GlueConfig,
    licence=LICENCE,
    variant="glue[rte,t5-32000]",
    open=open_glue,
    vocab_size=text_vocab_size,
    rendering=text_rendering,
    objectives=("seq2seq",),
    prepare=prepare_glue,
    targets=target_length,
    check=check_tokenizer,
)

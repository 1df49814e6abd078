"""GLUE's tasks text to text: T5's wording, GLUE's files, and which rows are train, valid and test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from efftx.data import known_files
from efftx.data.catalogue import prepare, verify
from efftx.data.dataset import find_source, notes_of, open_dataset
from efftx.data.glue import HUB_REVISION, TASKS, GlueConfig, as_text, open_glue, target_length
from efftx.data.hub import HubRows
from efftx.data.known_files import not_known
from efftx.data.pairs import TextPairs
from efftx.errors import UserError
from tests.data.shipped_config import shipped_config

SAMPLES = "efftx:samples/glue"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small files here stand for the published ones; a test of a user's own files takes this back."""
    monkeypatch.setattr("efftx.data.glue.are", lambda what, sums: True)


def open_at(path: Path | str | None, **keys: Any) -> TextPairs:
    values: dict[str, Any] = {"length": 400, "tokenizer": "bytes"} | keys
    return open_glue(GlueConfig("glue", path=None if path is None else str(path), **values))


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())


def write_rte(folder: Path, **counts: int) -> None:
    for split, count in counts.items():
        lines = [f"{i}\t{split} {i}\tWhat {i}\t{'not_' * (i % 2)}entailment" for i in range(count)]
        write(folder / f"{split}.tsv", "index\tsentence1\tsentence2\tlabel", *lines)


@pytest.mark.parametrize(
    ("task", "row", "source", "target"),
    [
        (
            "rte",
            {"sentence1": "A.", "sentence2": "B.", "label": "not_entailment"},
            "rte sentence1: A. sentence2: B.",
            "not_entailment",
        ),
        (
            "mrpc",
            {"#1 String": "A.", "#2 String": "B.", "Quality": "1"},
            "mrpc sentence1: A. sentence2: B.",
            "equivalent",
        ),
        ("sst2", {"sentence": "a ", "label": "0"}, "sst2 sentence: a", "negative"),
        ("cola", {"sentence": "A.", "label": "1"}, "cola sentence: A.", "acceptable"),
        (
            "qnli",
            {"question": "A?", "sentence": "B.", "label": "entailment"},
            "qnli question: A? sentence: B.",
            "entailment",
        ),
        (
            "mnli",
            {"sentence1": "P.", "sentence2": "H.", "label1": "neutral", "gold_label": "contradiction"},
            "mnli hypothesis: H. premise: P.",
            "contradiction",
        ),
        (
            "qqp",
            {"question1": "A?", "question2": "B?", "is_duplicate": "0"},
            "qqp question1: A? question2: B?",
            "not_duplicate",
        ),
    ],
)
def test_each_task_is_worded_as_by_t5(task: str, row: dict[str, str], source: str, target: str) -> None:
    document = as_text(task, row)
    assert (document.source, document.targets) == (source, [target])


def test_the_positive_class_is_glues() -> None:
    words = {name: list(task.words.values())[1] for name, task in TASKS.items() if len(task.words) == 2}
    assert words == {
        "cola": "acceptable",
        "mrpc": "equivalent",
        "qnli": "not_entailment",
        "qqp": "duplicate",
        "rte": "not_entailment",
        "sst2": "positive",
    }
    assert {name: task.metrics for name, task in TASKS.items() if len(task.metrics) > 1} == {
        "cola": ("accuracy", "matthews"),
        "mrpc": ("accuracy", "f1"),
        "qqp": ("accuracy", "f1"),
    }


@pytest.mark.parametrize("task", TASKS)
def test_the_target_length_has_room_for_every_label_in_bytes(task: str) -> None:
    config = GlueConfig("glue", 8, tokenizer="bytes", task=task)
    longest = max(len(word) for word in TASKS[task].words.values())
    assert target_length(config) > longest
    assert longest < 16


def test_the_packages_samples_are_called_so() -> None:
    dataset = open_at(SAMPLES)
    assert dataset.variant == f"glue[{SAMPLES} rte 18+6+6 rows of train+dev+test,bytes]"
    assert dataset.chance_accuracy == 50.0
    assert (dataset.length, dataset.metrics) == (16, ("accuracy",))
    assert [dataset.decode(ids) for ids in dataset.label_targets] == ["entailment", "not_entailment"]
    batch = dataset.batch("test", 0, 0, 6)
    assert [dataset.decode(row) for row in batch.tokens_BL.tolist()] == ["entailment", "not_entailment"] * 3
    assert batch.inputs_BE is not None
    assert dataset.decode(batch.inputs_BE[0].tolist()) == (
        "rte sentence1: Lena plays the piano and her brother plays the drums. sentence2: Lena's brother is a drummer."
    )


@pytest.mark.parametrize("inner", ["rte", "RTE", "."])
def test_the_folder_is_the_tasks_or_holds_it_under_its_name_or_glues(tmp_path: Path, inner: str) -> None:
    write_rte(tmp_path / inner, train=4, dev=2, test=3)
    dataset = open_at(tmp_path)
    assert dataset.variant == "glue[rte 4+2+3 rows of train+dev+test,bytes]"
    assert dataset.chance_accuracy == pytest.approx(200 / 3)
    assert dataset.source("valid", 1) == "rte sentence1: dev 1 sentence2: What 1"


def test_without_a_dev_file_every_tenth_row_of_train_is_valid(tmp_path: Path) -> None:
    write_rte(tmp_path, train=25, test=3)
    dataset = open_at(tmp_path)
    assert dataset.variant == "glue[rte 23+2+3 rows of train 90%+train 10%+test,bytes]"
    valid = [dataset.source("valid", i).split()[3] for i in range(2)]
    train = [dataset.source("train", i).split()[3] for i in range(23)]
    assert valid == ["9", "19"]
    assert train == [str(i) for i in range(25) if i not in (9, 19)]
    assert dataset.source("test", 2) == "rte sentence1: test 2 sentence2: What 2"


def test_where_glue_keeps_the_test_labels_dev_is_the_test(tmp_path: Path) -> None:
    write_rte(tmp_path, train=10, dev=2)
    write(tmp_path / "test.tsv", "index\tsentence1\tsentence2", "0\tA\tB")
    dataset = open_at(tmp_path)
    assert dataset.variant == "glue[rte 9+1+2 rows of train 90%+train 10%+dev,bytes]"
    assert dataset.source("test", 1) == "rte sentence1: dev 1 sentence2: What 1"


def test_files_without_a_header_have_the_tasks_columns(tmp_path: Path) -> None:
    for stem, sentence in (("in_domain_train", "Train."), ("in_domain_dev", "Dev."), ("out_of_domain_dev", "Out.")):
        write(tmp_path / "cola" / f"{stem}.tsv", f"gj04\t1\t\t{sentence}", "gj04\t0\t*\tNot this.")
    dataset = open_at(tmp_path, task="cola")
    files = "in_domain_train+in_domain_dev+out_of_domain_dev"
    assert dataset.variant == f"glue[cola 2+2+2 rows of {files},bytes]"
    assert dataset.source("test", 0) == "cola sentence: Out."
    assert dataset.references("test", 1) == ["unacceptable"]


def test_glues_own_cola_and_sst_2_are_read_too(tmp_path: Path) -> None:
    write(tmp_path / "CoLA" / "train.tsv", *[f"gj04\t1\t\tA{i}." for i in range(10)])
    write(tmp_path / "CoLA" / "dev.tsv", "gj04\t0\t*\tB.")
    write(tmp_path / "CoLA" / "test.tsv", "index\tsentence", "0\tC.")
    assert open_at(tmp_path, task="cola").variant == "glue[cola 9+1+1 rows of train 90%+train 10%+dev,bytes]"
    write(tmp_path / "SST-2" / "train.tsv", "sentence\tlabel", *[f"s{i}\t1" for i in range(10)])
    write(tmp_path / "SST-2" / "dev.tsv", "sentence\tlabel", "t\t0")
    dataset = open_at(tmp_path, task="sst2")
    assert dataset.variant == "glue[sst2 9+1+1 rows of train 90%+train 10%+dev,bytes]"
    assert dataset.source("train", 0) == "sst2 sentence: s0"


def test_mnli_is_judged_on_the_matched_dev_set_by_its_gold_label(tmp_path: Path) -> None:
    for stem, n_labels in (("train", 1), ("dev_matched", 5)):
        head = ["index", "sentence1", "sentence2", *(f"label{i + 1}" for i in range(n_labels)), "gold_label"]
        lines = [[str(i), f"P{i}", f"H{i}", *["neutral"] * n_labels, "entailment"] for i in range(10)]
        write(tmp_path / "MNLI" / f"{stem}.tsv", *("\t".join(line) for line in [head, *lines]))
    dataset = open_at(tmp_path, task="mnli")
    assert dataset.variant == "glue[mnli 9+1+10 rows of train 90%+train 10%+dev_matched,bytes]"
    assert dataset.references("test", 0) == ["entailment"]
    assert len(dataset.label_targets) == 3


def test_rows_with_another_number_of_cells_are_left_out_and_counted(tmp_path: Path) -> None:
    write_rte(tmp_path, train=3, dev=1, test=1)
    with (tmp_path / "train.tsv").open("a") as file:
        file.write("9\tonly one sentence\tentailment\n9\ta\tb\tc\tentailment\n")
    assert open_at(tmp_path).variant == "glue[rte 3+1+1 (2 left out) rows of train+dev+test,bytes]"


def test_quotation_marks_and_odd_line_separators_are_text(tmp_path: Path) -> None:
    write_rte(tmp_path, train=1, dev=1)
    line = '0\t"A \u2028 \x85 said "so\tB"\tentailment\r'
    write(tmp_path / "test.tsv", "\ufeffindex\tsentence1\tsentence2\tlabel\r", line)
    assert open_at(tmp_path).source("test", 0) == 'rte sentence1: "A \u2028 \x85 said "so sentence2: B"'


@pytest.mark.parametrize(
    ("line", "said"),
    [(b"0\tA\tB\tperhaps\n", "line 2: 'perhaps' is no label"), (b"0\tA\t\xff\tentailment\n", "line 2 is not UTF-8")],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, line: bytes, said: str) -> None:
    write_rte(tmp_path, dev=1, test=1)
    (tmp_path / "train.tsv").write_bytes(b"index\tsentence1\tsentence2\tlabel\n" + line)
    with pytest.raises(UserError, match=said) as raised:
        open_at(tmp_path)
    assert raised.value.kind == "bad_document"
    assert "train.tsv" in raised.value.message


@pytest.mark.parametrize("head", ["index,sentence1,sentence2,label", "0\tA\tB\tentailment", ""])
def test_a_file_without_the_columns_is_refused(tmp_path: Path, head: str) -> None:
    write_rte(tmp_path, dev=1, test=1)
    write(tmp_path / "train.tsv", head)
    with pytest.raises(UserError, match=r"train\.tsv, line 1: there is no header with sentence1, sentence2, label"):
        open_at(tmp_path)


def test_a_training_file_without_labels_is_refused(tmp_path: Path) -> None:
    write_rte(tmp_path, dev=1, test=1)
    write(tmp_path / "train.tsv", "index\tsentence1\tsentence2", "0\tA\tB")
    with pytest.raises(UserError, match="there is no column label"):
        open_at(tmp_path)


@pytest.mark.parametrize("task", ["qnli", "mnli", "qqp"])
def test_a_task_without_files_says_which_are_expected_where(tmp_path: Path, task: str) -> None:
    with pytest.raises(UserError) as raised:
        open_at(tmp_path, task=task)
    assert raised.value.kind == "missing_file"
    for word in (TASKS[task].folder, "train.tsv", *TASKS[task].fields.values(), TASKS[task].label):
        assert word in raised.value.hint


def test_files_are_looked_for_in_the_data_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="Cannot reach the Hub") as raised:
        open_at(None)
    assert str(root / "glue") in raised.value.hint
    write_rte(root / "glue" / "RTE", train=1, dev=1, test=1)
    assert open_at(None).variant == "glue[rte 1+1+1 rows of train+dev+test,bytes]"


def test_an_unknown_task_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"data\.task=rta") as raised:
        open_at(SAMPLES, task="rta")
    assert "'rte'" in raised.value.hint


@pytest.mark.parametrize(
    ("task", "said", "chance"),
    [
        ("rte", "1244+139+1384 rows of train+dev+test", 50.4335),
        ("mrpc", "3669+407+1725 rows of train 90%+train 10%+test", 66.4928),
        ("sst2", "6920+872+1821 rows of train+dev+test", 50.0824),
        ("cola", "8551+527+516 rows of in_domain_train+in_domain_dev+out_of_domain_dev", 68.6047),
    ],
)
def test_the_sample_files_are_read_as_they_are(samples: Path, task: str, said: str, chance: float) -> None:
    folder = samples / "data" / "glue"
    if not folder.is_dir():
        pytest.skip("EFFTX_SAMPLES names no folder with data/glue")
    dataset = open_at(folder, task=task)
    assert dataset.variant == f"glue[{task} {said},bytes]"
    assert dataset.chance_accuracy == pytest.approx(chance, abs=1e-3)


def test_the_papers_rows_have_512_tokens() -> None:
    config = shipped_config("glue")
    assert config == GlueConfig("glue", 512, tokenizer="t5", vocab_size=32000, task="rte")
    source = find_source("glue")
    assert (source.target_length(config, "seq2seq"), source.vocab_size(config, "seq2seq")) == (16, 32100)


def test_it_is_opened_by_name_and_for_text_to_text_alone() -> None:
    config = GlueConfig("glue", 64, SAMPLES, 32, tokenizer="bytes")
    dataset = open_dataset(config, "seq2seq")
    assert dataset.batch("train", 0, 0, 2).tokens_BL.shape == (2, 32)
    assert (dataset.vocab_size, dataset.input_length) == (find_source("glue").vocab_size(config, "seq2seq"), 64)
    with pytest.raises(UserError, match="does not offer objective=lm"):
        open_dataset(config, "lm")


def test_what_is_prepared_is_listed(root: Path) -> None:
    assert [row["state"] for row in verify("glue")] == ["not prepared"]
    row = prepare(GlueConfig("glue", 64, SAMPLES, 32, tokenizer="bytes"))
    assert (row["state"], row["licence"]) == ("verified", "Apache-2.0, written for efftx")
    assert row["variant"].startswith("glue[efftx:samples/glue")
    assert verify("glue") == [row]


@pytest.mark.parametrize("tabs", ["\t", "\t\t "])
def test_a_tab_at_the_end_of_a_line_loses_no_row(tmp_path: Path, tabs: str) -> None:
    for split in ("train", "dev", "test"):
        lines = [f"{i}\tS {i}\tWhat {i}\tentailment{tabs * (i % 2)}" for i in range(4)]
        write(tmp_path / f"{split}.tsv", f"index\tsentence1\tsentence2\tlabel{tabs}", *lines)
    dataset = open_at(tmp_path)
    assert dataset.variant == "glue[rte 4+4+4 rows of train+dev+test,bytes]"
    assert notes_of(dataset) == ()


def test_blank_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    write_rte(tmp_path, train=2, dev=2, test=2)
    (tmp_path / "dev.tsv").write_bytes((tmp_path / "dev.tsv").read_bytes().replace(b"\n", b"\r\n\r\n"))
    dataset = open_at(tmp_path)
    assert dataset.variant == "glue[rte 2+2+2 (3 left out) rows of train+dev+test,bytes]"
    assert notes_of(dataset) == ("Left out: 3 lines or rows that are blank or lack a text or a label.",)
    assert dataset.source("valid", 1) == "rte sentence1: dev 1 sentence2: What 1"


def test_a_users_own_files_are_not_called_glues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efftx.data.glue.are", known_files.are)
    write_rte(tmp_path, train=4, dev=4, test=4)
    dataset = open_at(tmp_path)
    files = r"train\.tsv\+dev\.tsv\+test\.tsv sha256:[0-9a-f]{12}"
    assert re.fullmatch(rf"glue\[{files} in the form of rte 4\+4\+4 rows of train\+dev\+test,bytes\]", dataset.variant)
    assert notes_of(dataset) == (not_known(str(tmp_path), "GLUE's rte"),)


HUB_ROWS = {
    "rte": {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 0},
    "mrpc": {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 0},
    "mnli": {"premise": "P.", "hypothesis": "H.", "label": 2, "idx": 0},
    "sst2": {"sentence": "a ", "label": 0, "idx": 0},
    "qnli": {"question": "A?", "sentence": "B.", "label": 0, "idx": 0},
    "qqp": {"question1": "A?", "question2": "B?", "label": 0, "idx": 0},
    "cola": {"sentence": "A.", "label": 1, "idx": 0},
}


@pytest.mark.parametrize("task", HUB_ROWS)
def test_files_as_the_hub_has_them_are_the_rows_of_glues_own(task: str, tmp_path: Path) -> None:
    dev = "validation_matched" if task == "mnli" else "validation"
    rows = {
        "train": [HUB_ROWS[task]] * 20,
        dev: [HUB_ROWS[task]] * 3,
        dev.replace("validation", "test"): [HUB_ROWS[task] | {"label": -1}],
    }
    (tmp_path / task).mkdir()
    for split, its in rows.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(its), tmp_path / task / f"{split}-00000-of-00001.parquet")
    dataset = open_at(tmp_path, task=task)
    assert dataset.variant == f"glue[{task} 18+2+3 rows of train 90%+train 10%+{dev},bytes]"
    own = {
        "rte": ("A.", "B.", "not_entailment"),
        "mrpc": ("A.", "B.", "equivalent"),
        "mnli": ("H.", "P.", "contradiction"),
    }
    if task in own:
        one, two, label = own[task]
        words = ("hypothesis", "premise") if task == "mnli" else ("sentence1", "sentence2")
        assert dataset.source("test", 0) == f"{task} {words[0]}: {one} {words[1]}: {two}"
        assert dataset.references("test", 0) == [label]


def test_without_a_path_the_hub_is_read_at_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rows(self: HubRows, split: str, hint: str) -> Iterator[dict[str, Any]]:
        asked.append((self.place, self.subset, self.revision, split))
        return iter([HUB_ROWS["rte"]] * 20)

    monkeypatch.setattr(HubRows, "rows", rows)
    dataset = open_at(None)
    assert dataset.variant == "glue[rte 18+2+20 rows of train 90%+train 10%+validation,bytes]"
    assert {words[:3] for words in asked} == {("nyu-mll/glue", "rte", HUB_REVISION)}
    assert {words[3] for words in asked} == {"train", "validation"}
    assert verify("glue")[0]["state"] == "verified"


def test_a_training_file_alone_is_not_enough(tmp_path: Path) -> None:
    write_rte(tmp_path, train=20)
    with pytest.raises(UserError, match=r"has no labelled files of data\.task=rte") as error:
        open_at(tmp_path, task="rte")
    assert error.value.kind == "missing_file"

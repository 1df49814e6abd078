"""Sentences and their translations: which files, what is left out, what the record says, and how they are scored."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from efftx.config.compose import compose
from efftx.data.dataset import open_dataset
from efftx.data.hub import HubRows
from efftx.data.pairs import TextPairs
from efftx.data.wmt14 import WMTConfig, check_wmt14, open_wmt14
from efftx.decoding.beam import Beam, Hypothesis, beam_search
from efftx.decoding.session import CachedSession
from efftx.decoding.uncached import EOS
from efftx.errors import UserError
from efftx.evaluation import generation
from efftx.training.loop import train
from tests.data.shipped_config import shipped_config

SAMPLES = "efftx:samples/wmt14"
PAIRS = [(f"word {i}", f"Wort {i}") for i in range(4)]


def open_at(path: Path | str | None, **keys: Any) -> TextPairs:
    values: dict[str, Any] = {"length": 64, "target_length": 64, "tokenizer": "bytes"} | keys
    return open_wmt14(WMTConfig("wmt14", path=None if path is None else str(path), **values))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parallel(folder: Path, stem: str, pairs: list[tuple[str, str]], packed: str = "") -> None:
    for i, language in enumerate(("en", "de")):
        text = "".join(pair[i] + "\n" for pair in pairs).encode()
        (folder / f"{stem}.{language}{packed}").write_bytes(gzip.compress(text) if packed else text)


def pairs_of(dataset: TextPairs, split: str) -> list[tuple[str, str]]:
    return [(dataset.source(split, i), dataset.references(split, i)[0]) for i in range(dataset.n_documents(split))]


def test_the_sentences_that_ship_are_pairs() -> None:
    dataset = open_at(SAMPLES)
    assert dataset.variant == f"wmt14[{SAMPLES} en-de 24+4+4 pairs,bytes]"
    assert pairs_of(dataset, "test")[0] == ("How much does this ticket cost?", "Wie viel kostet diese Fahrkarte?")
    assert dataset.metrics == ("bleu",)


def test_rows_of_json_have_a_key_for_each_language_or_the_hubs_translation(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"en": a, "de": b} for a, b in PAIRS])
    write_rows(tmp_path / "valid.jsonl", [{"translation": {"en": a, "de": b}} for a, b in PAIRS[:2]])
    write_rows(tmp_path / "test.jsonl", [{"en": "one", "de": "eins"}, {"en": "", "de": "nichts"}])
    dataset = open_at(tmp_path)
    assert pairs_of(dataset, "train") == PAIRS
    assert pairs_of(dataset, "valid") == PAIRS[:2]
    assert pairs_of(dataset, "test") == [("one", "eins")]
    assert "en-de 4+2+1 (1 left out) pairs" in dataset.variant


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_parallel_files_are_pairs_line_by_line_and_newstests_have_their_splits(tmp_path: Path, packed: str) -> None:
    write_parallel(tmp_path, "train", [*PAIRS, ("", "leer"), ("empty", " ")], packed)
    write_parallel(tmp_path, "newstest2013", PAIRS[:1], packed)
    write_parallel(tmp_path, "newstest2014", PAIRS[1:2], packed)
    dataset = open_at(tmp_path)
    assert [pairs_of(dataset, split) for split in ("train", "valid", "test")] == [PAIRS, PAIRS[:1], PAIRS[1:2]]
    assert "4+1+1 (2 left out)" in dataset.variant


def test_parallel_files_plain_and_compressed_are_read_once(tmp_path: Path) -> None:
    for packed in ("", ".gz"):
        write_parallel(tmp_path, "news", [(f"one {i}", f"eins {i}") for i in range(20)], packed)
    dataset = open_at(tmp_path)
    assert [dataset.n_documents(split) for split in ("train", "valid", "test")] == [18, 1, 1]
    assert "Left out: news.en.gz, other forms of files that are read." in dataset.notes


def test_parallel_files_without_one_of_training_are_cut(tmp_path: Path) -> None:
    write_parallel(tmp_path, "newstest2013", [(f"one {i}", f"eins {i}") for i in range(10)])
    write_parallel(tmp_path, "newstest2014", [(f"two {i}", f"zwei {i}") for i in range(10)])
    dataset = open_at(tmp_path)
    assert [len(pairs_of(dataset, split)) for split in ("train", "valid", "test")] == [18, 1, 1]


def test_the_other_direction_has_source_and_target_exchanged(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_parallel(tmp_path, split, PAIRS)
    dataset = open_at(tmp_path, source="de", target="en")
    assert pairs_of(dataset, "train") == [(b, a) for a, b in PAIRS]
    assert "de-en" in dataset.variant


def test_unequal_numbers_of_lines_are_refused_by_the_first_that_has_no_partner(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_parallel(tmp_path, split, PAIRS)
    with (tmp_path / "train.de").open("a") as file:
        file.write("zu viel\n")
    with pytest.raises(UserError, match=r"train\.de has a line 5, and .*train\.en ends before it"):
        open_at(tmp_path)


def test_a_file_without_its_partner_and_one_that_is_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.en").write_text("alone\n")
    with pytest.raises(UserError, match=r"has no train\.de beside it"):
        open_at(tmp_path)
    (tmp_path / "train.de").write_bytes(b"\xff\xfa\n")
    with pytest.raises(UserError, match=r"train\.de, line 1 is not UTF-8"):
        open_at(tmp_path)


def test_a_row_without_a_language_is_refused_by_its_line(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"en": "one", "de": "eins"}, {"en": "two", "fr": "deux"}])
    with pytest.raises(UserError, match=r"line 2: the row has no texts 'en' and 'de'"):
        open_at(tmp_path)


@pytest.mark.parametrize("keys", [{"source": "de"}, {"target": "german"}, {"source": "../x"}])
def test_languages_that_are_none_are_refused(keys: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"data\.(source|target)"):
        check_wmt14(WMTConfig("wmt14", 64, tokenizer="bytes", **keys))  # type: ignore[arg-type]


def test_training_leaves_out_what_a_row_would_cut_and_evaluation_says_what_it_cuts(tmp_path: Path) -> None:
    long = ("a sentence that is longer than a row", "ein Satz, der länger ist")
    for split in ("train", "valid", "test"):
        write_parallel(tmp_path, split, [*PAIRS, long])
    dataset = open_at(tmp_path, length=16, target_length=16)
    assert "1 of 5 training pairs are longer than a row and left out." in dataset.notes
    assert "1 of 5 sources of test are cut to data.length." in dataset.notes
    rows = dataset.batch("train", 0, 0, 40)
    assert rows.inputs_BE is not None
    assert {dataset.decode(row) for row in rows.inputs_BE.tolist()} == {a for a, _ in PAIRS}
    assert dataset.batch("test", 0, 0, 5).tokens_BL.shape == (5, 16)
    with pytest.raises(UserError, match="No training pair"):
        open_at(tmp_path, length=4, target_length=4)


def test_every_epoch_of_the_pairs_that_fit_has_each_once(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_parallel(tmp_path, split, [("x" * 40, "y"), *PAIRS])
    dataset = open_at(tmp_path, length=16, target_length=16)
    for epoch in range(3):
        rows = dataset.batch("train", 7, epoch, 4).inputs_BE
        assert rows is not None
        assert sorted(dataset.decode(row) for row in rows.tolist()) == sorted(a for a, _ in PAIRS)


def test_without_files_the_hub_is_read_at_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(self: HubRows, split: str, hint: str) -> Any:
        assert (self.place, self.subset, len(self.revision)) == ("wmt/wmt14", "de-en", 40)
        assert split in ("train", "validation", "test")
        return iter([{"translation": {"de": "eins", "en": "one"}}])

    monkeypatch.setattr(HubRows, "rows", rows)
    dataset = open_at(None)
    assert dataset.variant == "wmt14[en-de 1+1+1 pairs,bytes]"
    assert pairs_of(dataset, "test") == [("one", "eins")]


def test_the_shipped_configuration_is_the_papers() -> None:
    config = shipped_config("wmt14")
    assert config == WMTConfig("wmt14", 128, target_length=128, tokenizer="unigram", vocab_size=32000)


@pytest.mark.parametrize("beam", [1, 3])
def test_a_training_is_scored_by_bleu_and_its_record_names_the_decoding_and_the_signature(beam: int) -> None:
    words = ["model=scaling", "data=wmt14", f"data.path={SAMPLES}", "size=smoke", "training.label_smoothing=0.1"]
    result = train(compose([*words, *([f"evaluation.beam={beam}"] if beam > 1 else [])]), silent=True)
    assert {"bleu", "bleu_uncased", "copy_bleu"} <= set(result.metrics)
    assert result.data["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:intl|smooth:exp|version:")
    assert "case:lc" in result.data["bleu_uncased_signature"]


def test_a_training_is_scored_by_the_beam_and_the_penalty_of_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def search(session: CachedSession, *order: Any, **how: Any) -> list[Hypothesis]:
        asked.append((session.batch, order, how))
        return beam_search(session, *order, **how)

    monkeypatch.setattr(generation, "beam_search", search)
    words = ["model=scaling", "data=wmt14", f"data.path={SAMPLES}", "size=smoke"]
    config = compose([*words, "evaluation.beam=3", "evaluation.length_penalty=0.8"])
    train(config, silent=True)
    assert len(asked) >= 4, "every sentence of test"
    assert all(one == (3, ([], Beam(3, 0.8), config.target_length, EOS), {}) for one in asked)


def test_a_penalty_without_a_beam_is_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation\.length_penalty"):
        compose(["model=scaling", "data=wmt14", "size=smoke", "evaluation.length_penalty=0.8"])


def test_real_newstest_sentences_are_pairs(samples: Path) -> None:
    folder = samples / "data" / "wmt_ende"
    if not folder.is_dir():
        pytest.skip("the sample files hold no wmt_ende")
    dataset = open_dataset(WMTConfig("wmt14", 128, path=str(folder), target_length=128, tokenizer="bytes"), "seq2seq")
    assert isinstance(dataset, TextPairs)
    assert (dataset.n_documents("valid"), dataset.n_documents("test")) == (3000, 3003)

"""Which of a user's files, and which documents of them, are train, valid and test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftx.data.document_files import find_documents, take
from efftx.data.prepared import SPLITS
from efftx.errors import UserError


def documents(file: Path) -> Iterator[str | None]:
    return (line or None for line in file.read_text().splitlines())


def splits_of(path: Path | str, at_most: int | None = None) -> dict[str, str]:
    """The documents of each split, - for a place without one."""
    files = find_documents(str(path), "hint")
    return {split: "".join(d or "-" for d in files.read(split, documents, at_most)) for split in SPLITS}


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = folder / (name.replace("__", "/") + ".jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(text))


LETTERS = "abcdefghijklmnopqrst"


def test_files_named_by_the_three_splits_are_these(tmp_path: Path) -> None:
    write(tmp_path, train="abc", valid="d", test="ef", train_more="x", other="y")
    assert splits_of(tmp_path) == {"train": "abc", "valid": "d", "test": "ef"}
    assert splits_of(tmp_path, 2) == {"train": "ab", "valid": "d", "test": "ef"}


def test_a_plain_file_is_taken_before_a_compressed_one_of_another_format(tmp_path: Path) -> None:
    write(tmp_path, train="ab", valid="c", test="d")
    for split in SPLITS:
        (tmp_path / f"{split}.json.gz").write_bytes(b"compressed")
    files = find_documents(str(tmp_path), "hint")
    assert files.files == {split: [tmp_path / f"{split}.jsonl"] for split in SPLITS}
    assert "train.json.gz" in "".join(files.notes)


@pytest.mark.parametrize("valid", ["dev", "val", "validation"])
def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path, valid: str) -> None:
    write(tmp_path, **{"my-train-1": "cd", "my-train-0": "ab", f"my-{valid}-0": "e", "x__test__0": "f"})
    assert splits_of(tmp_path) == {"train": "abcd", "valid": "e", "test": "f"}


def test_without_test_files_the_validation_files_are_halved(tmp_path: Path) -> None:
    write(tmp_path, train="ab", validation="cdefg")
    assert splits_of(tmp_path) == {"train": "ab", "valid": "cd", "test": "efg"}
    assert find_documents(str(tmp_path), "").rule == ", validation halved"


def test_without_validation_files_the_last_twentieth_of_training_is_it(tmp_path: Path) -> None:
    write(tmp_path, train=LETTERS, test="xy")
    assert splits_of(tmp_path) == {"train": LETTERS[:19], "valid": "t", "test": "xy"}
    assert splits_of(tmp_path, 10) == {"train": LETTERS[:9], "valid": "j", "test": "xy"}


def test_without_training_files_all_documents_are_split_90_5_5(tmp_path: Path) -> None:
    write(tmp_path, a=LETTERS[:7], b=LETTERS[7:])
    assert find_documents(str(tmp_path), "").rule == ", 90/5/5"
    assert splits_of(tmp_path) == {"train": LETTERS[:18], "valid": "s", "test": "t"}
    write(tmp_path / "one", test=LETTERS)
    for same in ("one", "one/test.jsonl", "one/*.jsonl", "[a-b].jsonl"):
        assert splits_of(tmp_path / same) == {"train": LETTERS[:18], "valid": "s", "test": "t"}, same


def test_files_that_belong_to_no_split_are_named(tmp_path: Path) -> None:
    write(tmp_path, **{"train-0": "ab", "valid-0": "cd"})
    assert find_documents(str(tmp_path), "").notes == ()
    write(tmp_path, extra="x", more__rest="y")
    (note,) = find_documents(str(tmp_path), "").notes
    assert note.startswith("Left out: extra.jsonl, more/rest.jsonl")
    write(tmp_path, **{f"part{i}": "z" for i in range(5)})
    (note,) = find_documents(str(tmp_path), "").notes
    assert note.startswith("Left out: extra.jsonl, more/rest.jsonl, part0.jsonl and 4 more files")
    write(tmp_path, train="ab", valid="c", test="d")
    (note,) = find_documents(str(tmp_path), "").notes
    assert note.startswith("Left out: extra.jsonl, more/rest.jsonl, part0.jsonl and 6 more files")


def test_shards_after_a_dot_are_all_of_their_split(tmp_path: Path) -> None:
    write(tmp_path, **{"train.0": "ab", "train.1": "cd", "train.2": "e"}, valid="f", test="g")
    assert splits_of(tmp_path) == {"train": "abcde", "valid": "f", "test": "g"}
    assert find_documents(str(tmp_path), "").notes == ()
    write(tmp_path, other="y", **{"test.more": "h"})
    assert splits_of(tmp_path) == {"train": "abcde", "valid": "f", "test": "gh"}
    assert find_documents(str(tmp_path), "").notes == ("Left out: other.jsonl, beside files that are named by split.",)


def test_a_file_in_two_formats_or_compressions_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, train="ab", valid="c", test="d")
    for name in ("train.jsonl.gz", "train.parquet", "valid.jsonl.xz"):
        (tmp_path / name).write_bytes(b"not read")
    assert splits_of(tmp_path) == {"train": "ab", "valid": "c", "test": "d"}


@pytest.mark.parametrize("places", [("docs",), ("a/docs", "b/docs"), ("train-0", "dev", "more")], ids=str)
@pytest.mark.parametrize("pattern", ["", "/**/*.json*"])
def test_a_file_in_two_forms_is_read_once_wherever_it_stands(
    tmp_path: Path, places: tuple[str, ...], pattern: str
) -> None:
    for n, place in enumerate(places):
        write(tmp_path, **{place.replace("/", "__"): LETTERS[5 * n :][:9]})
    before = splits_of(f"{tmp_path}{pattern}")
    for place in places:
        for ending in (".jsonl.gz", ".json.xz"):
            (tmp_path / f"{place}{ending}").write_bytes(b"not read")
    assert splits_of(f"{tmp_path}{pattern}") == before
    note = find_documents(f"{tmp_path}{pattern}", "").notes[0]
    assert note.startswith(f"Left out: {min(places)}.json.xz, " if not pattern else "Left out: ")
    assert note.endswith(", other forms of files that are read.")


def test_of_compressed_forms_alone_the_first_is_read(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "a.jsonl.xz", "b.parquet", "sub/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_documents(str(tmp_path), "").all == [tmp_path / n for n in ("a.jsonl.gz", "b.parquet", "sub/a.jsonl")]


def test_endings_are_read_whatever_their_case(tmp_path: Path) -> None:
    write(tmp_path, train="ab", valid="c", test="d")
    (tmp_path / "valid.jsonl").rename(tmp_path / "valid.JSONL")
    assert splits_of(tmp_path) == {"train": "ab", "valid": "c", "test": "d"}


def test_documents_are_counted_once_for_all_splits(tmp_path: Path) -> None:
    write(tmp_path, a=LETTERS)
    read: list[Path] = []

    def counting(file: Path) -> Iterator[str | None]:
        read.append(file)
        return documents(file)

    files = find_documents(str(tmp_path), "")
    for split in SPLITS:
        list(files.read(split, counting))
    assert len(read) == 4


def test_other_files_of_a_folder_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, a="abc")
    (tmp_path / "README.md").write_text("x")
    assert find_documents(str(tmp_path), "").all == [tmp_path / "a.jsonl"]
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"holds no \.jsonl, \.json or \.parquet file") as raised:
        find_documents(str(tmp_path), "hint")
    assert raised.value.hint == "hint"


@given(st.lists(st.sampled_from(["a", None])), st.integers(0, 9), st.none() | st.integers(0, 9))
def test_documents_are_counted_and_what_is_none_is_not(rows: list[str | None], start: int, stop: int | None) -> None:
    numbered: list[int | None] = []
    for row in rows:
        numbered.append(None if row is None else sum(n is not None for n in numbered))
    found = list(take(iter(numbered), start, stop))
    whole = [n for n in numbered if n is not None]
    assert [n for n in found if n is not None] == whole[start:stop]


def test_every_blank_place_is_counted_once_over_the_splits() -> None:
    rows = [None, "a", None, "b", None, "c", None]
    parts = [list(take(rows, 0, 1)), list(take(rows, 1, 2)), list(take(rows, 2, None))]
    assert [len([row for row in part if row is None]) for part in parts] == [1, 1, 2]

from __future__ import annotations

import hashlib
import http.server
import lzma
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efftx.data import enwik8
from efftx.data.byte_corpus import split_90_5_5
from efftx.data.dataset import notes_of, open_dataset
from efftx.data.enwik8 import ENWIK8, Enwik8Config, Published, archive_path, prepare_enwik8, variant
from efftx.data.known_files import not_known
from efftx.data.prepared import SPLITS, Prepared
from efftx.data.text_files import read_text
from efftx.errors import UserError


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def called(text: bytes, small: Published, sizes: tuple[int, int, int] | None = None) -> str:
    return variant(text, sizes or split_90_5_5(len(text)), "text", small)


def prepare(path: Path | None, small: Published) -> Prepared:
    return prepare_enwik8(Enwik8Config("enwik8", 16, None if path is None else str(path)), small)


def content(prepared: Prepared) -> bytes:
    return b"".join(prepared.path(split).read_bytes() for split in SPLITS)


def test_only_the_true_text_has_the_bare_name(text: bytes, small: Published) -> None:
    assert called(text, small) == "small"
    with pytest.raises(UserError, match="has not the SHA-256 of the first"):
        called(text[:-1] + b"?", small)


@pytest.mark.parametrize("size", [100, 1000, 2500])
def test_a_prefix_whose_sum_is_known_says_its_length(text: bytes, small: Published, size: int) -> None:
    assert called(text[:size], small) == f"small[:{size}]"


@pytest.mark.parametrize(("size", "wrong"), [(500, 99), (1500, 99), (1500, 999)])
def test_a_text_that_begins_otherwise_is_no_prefix(text: bytes, small: Published, size: int, wrong: int) -> None:
    with pytest.raises(UserError, match="does not begin like small") as raised:
        called(text[:wrong] + b"?" + text[wrong + 1 : size], small)
    assert raised.value.kind == "wrong_checksum"


@pytest.mark.parametrize("size", [101, 999, 2499])
def test_no_more_is_called_a_prefix_than_the_sums_tell(text: bytes, small: Published, size: int) -> None:
    with pytest.raises(UserError, match=r"begins with the first \d+(,000)? bytes of small, but no sum of its"):
        called(text[:size], small)


def test_a_text_too_short_to_be_known_is_refused(text: bytes, small: Published) -> None:
    with pytest.raises(UserError, match="cannot be told from others"):
        called(text[:99], small)


def test_a_longer_text_is_refused(text: bytes, small: Published) -> None:
    with pytest.raises(UserError, match="longer than small"):
        called(text + b"?", small)


def test_a_folders_own_split_is_kept_and_named(text: bytes, small: Published, tmp_path: Path) -> None:
    (tmp_path / "train.xz").write_bytes(lzma.compress(text[:2000]))
    (tmp_path / "valid.xz").write_bytes(lzma.compress(text[2000:2400]))
    (tmp_path / "test.xz").write_bytes(lzma.compress(text[2400:2500]))
    prepared = prepare(tmp_path, small)
    assert prepared.meta["variant"] == "small[:2500][split 2000+400+100]"
    assert prepared.meta["sha256"] == sha256(text[:2500])
    assert [prepared.size(split) for split in SPLITS] == [2000, 400, 100]
    assert content(prepared) == text[:2500]


def test_a_file_and_a_folder_with_the_usual_split_are_the_same_data(
    text: bytes, small: Published, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(text[:1000])
    for split, piece in zip(SPLITS, (text[:900], text[900:950], text[950:1000]), strict=True):
        (tmp_path / split).write_bytes(piece)
    assert prepare(tmp_path, small) == prepare(tmp_path / "file", small)


def test_the_archive_at_a_path_is_the_whole_text(text: bytes, small: Published, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "any.zip").write_bytes(archive)
    prepared = prepare(tmp_path / "any.zip", small)
    assert prepared.meta["variant"] == "small"
    assert prepare(None, small) == prepared  # found by its checksum, no network needed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: b"?" + text[1:], "has not the SHA-256 of the first"),
        (lambda text: text + b"more", "is longer than small"),
        (lambda text: b"A user's own text.\n" * 40, "does not begin like small"),
        (lambda text: text[:1200] + b"Another text.\n" * 9, "begins with the first 1,000 bytes of small, but no sum"),
        (lambda text: b"Short.\n" * 9, "cannot be told from others"),
    ],
)
def test_another_text_is_the_users_own_uncut_and_a_note_says_why(
    text: bytes, small: Published, tmp_path: Path, change: Callable[[bytes], bytes], why: str
) -> None:
    own = change(text)
    (tmp_path / "my.txt").write_bytes(own)
    prepared = prepare(tmp_path / "my.txt", small)
    digest = sha256(own)[:12]
    assert prepared.meta["name"] == "text"
    assert prepared.meta["variant"] == f"text[my.txt sha256:{digest} {len(own):,} bytes, 90/5/5]"
    assert content(prepared) == own
    assert why in prepared.meta["notes"][0]


def test_a_folder_of_other_texts_is_the_users_own_too(small: Published, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(f"This is {name}.\n".encode() * 30)
    dataset = open_dataset(Enwik8Config("enwik8", 16, str(tmp_path)))
    assert (dataset.name, dataset.unit, dataset.vocab_size) == ("text", "bits/dim", 256)
    assert dataset.variant.startswith("text[a.txt+b.txt sha256:")
    assert notes_of(dataset) == (not_known(str(tmp_path), "enwik8"),)


@pytest.mark.parametrize("name", ["small", "small.zip"])
def test_the_file_in_its_usual_folder_or_in_one_given_is_known(
    text: bytes, small: Published, archive: bytes, root: Path, tmp_path: Path, name: str
) -> None:
    for folder in (root / "small", tmp_path / "given"):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(archive if name.endswith(".zip") else text)
        (folder / "README").write_bytes(b"Where it is from.\n")
    assert prepare(None, small).meta["variant"] == "small"
    assert prepare(tmp_path / "given", small).meta["variant"] == "small"


@pytest.mark.parametrize("keys", [{}, {"n_bytes": 1000}, {"extra": "enwiki2016"}])
def test_a_mistyped_path_is_said_to_be_missing(small: Published, tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"data.path={tmp_path / 'enwki8'} does not exist") as raised:
        prepare_enwik8(Enwik8Config("enwik8", 16, str(tmp_path / "enwki8"), **keys), small)
    assert raised.value.hint


def test_without_a_network_the_message_says_what_to_put_where(small: Published, root: Path) -> None:
    with pytest.raises(UserError) as raised:
        prepare(None, small)
    assert raised.value.kind == "no_network"
    for word in (str(archive_path(small)), "data.path", "data=stdlib"):
        assert word in raised.value.hint
    assert [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_an_archive_put_there_by_hand_is_used(text: bytes, small: Published, archive: bytes) -> None:
    archive_path(small).parent.mkdir(parents=True)
    archive_path(small).write_bytes(archive)
    assert content(prepare(None, small)) == text


def test_the_download_is_unpacked_checked_and_prepared(
    text: bytes, archive: bytes, publish: Callable[..., Published], tmp_path: Path
) -> None:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            pass

    (tmp_path / "small.zip").write_bytes(archive)
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        prepared = prepare(None, publish(archive, f"http://127.0.0.1:{server.server_port}"))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert prepared.meta["variant"] == "small"
    assert content(prepared) == text


@pytest.mark.parametrize("inside", ["archive_of_a_part", "archive_of_another_text"])
def test_an_archive_with_another_text_in_it_is_refused(
    inside: str, publish: Callable[..., Published], root: Path, request: pytest.FixtureRequest
) -> None:
    packed = request.getfixturevalue(inside)
    small = publish(packed)
    archive_path(small).parent.mkdir(parents=True)
    archive_path(small).write_bytes(packed)
    with pytest.raises(UserError) as raised:
        prepare(None, small)
    assert raised.value.kind == "wrong_checksum"
    assert not list(root.glob("prepared/small*"))


def test_the_published_facts_are_those_of_the_paper_sheet() -> None:
    assert ENWIK8.n_bytes == 100_000_000
    assert ENWIK8.sha256.startswith("2b49720e")
    assert ENWIK8.prefixes[100_000].startswith("581bee97")
    assert ENWIK8.prefixes[1_000_000].startswith("369b6889")


def test_opening_gives_windows(text: bytes, small: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(text)
    monkeypatch.setattr(enwik8, "ENWIK8", small)
    dataset = open_dataset(Enwik8Config("enwik8", 32, str(tmp_path / "file")))
    assert (dataset.name, dataset.variant, dataset.unit, dataset.vocab_size) == ("small", "small", "bits/dim", 256)
    assert dataset.checksum == sha256(text)
    with pytest.raises(UserError, match="is longer than"):
        open_dataset(Enwik8Config("enwik8", 3000, str(tmp_path / "file")))


@pytest.fixture
def sample() -> Path:
    samples = os.environ.get("EFFTX_SAMPLES")
    if not samples or not Path(samples, "data", "enwik8").is_dir():
        pytest.skip("EFFTX_SAMPLES names no folder with data/enwik8")
    return Path(samples, "data", "enwik8")


def test_the_real_prefix_has_the_published_sums(sample: Path) -> None:
    text = read_text(sample, ENWIK8.n_bytes).content
    for size, expected in ENWIK8.prefixes.items():
        assert sha256(text[:size]) == expected


def test_the_real_prefix_is_read_and_named(sample: Path) -> None:
    dataset = open_dataset(Enwik8Config("enwik8", 65536, str(sample)))
    assert dataset.variant == "enwik8[:4150000]"
    assert dataset.n_batches("test", 1) == 4
    assert bytes(dataset.batch("train", 0, 0, 1).tokens_BL[0].tolist()).decode(errors="ignore")

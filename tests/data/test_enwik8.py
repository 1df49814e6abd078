from __future__ import annotations

import hashlib
import http.server
import lzma
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from efftx.data import enwik8
from efftx.data.byte_corpus import split_90_5_5
from efftx.data.dataset import DataConfig, open_dataset
from efftx.data.enwik8 import ENWIK8, Published, archive_path, prepare_enwik8, variant
from efftx.data.prepared import SPLITS, Prepared
from efftx.data.text_files import read_text
from efftx.errors import UserError


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def called(text: bytes, small: Published, sizes: tuple[int, int, int] | None = None) -> str:
    return variant(text, sizes or split_90_5_5(len(text)), "text", small)


def prepare(path: Path | None, small: Published) -> Prepared:
    return prepare_enwik8(DataConfig("enwik8", 16, None if path is None else str(path)), small)


def content(prepared: Prepared) -> bytes:
    return b"".join(prepared.path(split).read_bytes() for split in SPLITS)


def test_only_the_true_text_has_the_bare_name(text: bytes, small: Published) -> None:
    assert called(text, small) == "small"
    with pytest.raises(UserError, match="not its SHA-256"):
        called(text[:-1] + b"?", small)


@pytest.mark.parametrize("size", [100, 999, 1000, 2500])
def test_a_prefix_says_its_length(text: bytes, small: Published, size: int) -> None:
    assert called(text[:size], small) == f"small[:{size}]"


@pytest.mark.parametrize(("size", "wrong"), [(500, 99), (1500, 99), (1500, 999)])
def test_a_text_that_begins_otherwise_is_no_prefix(text: bytes, small: Published, size: int, wrong: int) -> None:
    with pytest.raises(UserError, match="does not begin like small") as raised:
        called(text[:wrong] + b"?" + text[wrong + 1 : size], small)
    assert raised.value.kind == "wrong_checksum"


@pytest.mark.parametrize("filler", [b"\0" * 20, b"\xff" * 20])
def test_a_prefix_with_a_hole_is_no_prefix(text: bytes, small: Published, filler: bytes) -> None:
    start = text.index(b"<page>", 1500)  # between characters, so that only the filler is wrong
    end = text.index(b"<page>", start + 1)
    with pytest.raises(UserError, match="damaged further on"):
        called(text[:start] + filler + text[end:], small)


def test_a_prefix_may_end_within_a_character(text: bytes, small: Published) -> None:
    end = text.index("ü".encode(), 1000) + 1
    assert called(text[:end], small) == f"small[:{end}]"


def test_a_text_too_short_to_be_known_is_refused(text: bytes, small: Published) -> None:
    with pytest.raises(UserError, match="cannot be told from others"):
        called(text[:99], small)


def test_a_longer_text_is_refused(text: bytes, small: Published) -> None:
    with pytest.raises(UserError, match="longer than small"):
        called(text + b"?", small)


def test_a_folders_own_split_is_kept_and_named(text: bytes, small: Published, tmp_path: Path) -> None:
    (tmp_path / "train.xz").write_bytes(lzma.compress(text[:2000]))
    (tmp_path / "valid.xz").write_bytes(lzma.compress(text[2000:2500]))
    (tmp_path / "test.xz").write_bytes(lzma.compress(text[2500:2600]))
    prepared = prepare(tmp_path, small)
    assert prepared.meta["variant"] == "small[:2600][split 2000+500+100]"
    assert prepared.meta["sha256"] == sha256(text[:2600])
    assert [prepared.size(split) for split in SPLITS] == [2000, 500, 100]
    assert content(prepared) == text[:2600]


def test_a_file_and_a_folder_with_the_usual_split_are_the_same_data(
    text: bytes, small: Published, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(text[:2000])
    for split, piece in zip(SPLITS, (text[:1800], text[1800:1900], text[1900:2000]), strict=True):
        (tmp_path / split).write_bytes(piece)
    assert prepare(tmp_path, small) == prepare(tmp_path / "file", small)


def test_the_archive_at_a_path_is_the_whole_text(text: bytes, small: Published, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "any.zip").write_bytes(archive)
    prepared = prepare(tmp_path / "any.zip", small)
    assert prepared.meta["variant"] == "small"
    assert prepare(None, small) == prepared  # found by its checksum, no network needed


def test_a_refused_text_leaves_nothing(text: bytes, small: Published, tmp_path: Path, root: Path) -> None:
    (tmp_path / "file").write_bytes(b"?" + text[1:])
    with pytest.raises(UserError):
        prepare(tmp_path / "file", small)
    assert not root.exists()


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
    monkeypatch.setattr(enwik8.prepare_enwik8, "__defaults__", (replace(small),))
    dataset = open_dataset(DataConfig("enwik8", 32, str(tmp_path / "file")))
    assert (dataset.name, dataset.variant, dataset.unit, dataset.vocab_size) == ("small", "small", "bits/byte", 256)
    assert dataset.checksum == sha256(text)
    with pytest.raises(UserError, match="is longer than"):
        open_dataset(DataConfig("enwik8", 3000, str(tmp_path / "file")))


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
    dataset = open_dataset(DataConfig("enwik8", 65536, str(sample)))
    assert dataset.variant == "enwik8[:4150000]"
    assert dataset.n_batches("test", 1) == 4
    assert bytes(dataset.batch("train", 0, 0, 1).tokens_BL[0].tolist()).decode(errors="ignore")

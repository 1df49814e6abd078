from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from efftx.data.text_files import read_text
from efftx.errors import UserError

# Incompressible enough that cutting an archive in half cuts its data.
CONTENT = b"".join(f"{i * 7919 % 10007} ".encode() for i in range(4000))


def as_zip(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text", content)
    return packed.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".xz": lzma.compress,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zip": as_zip,
}
packed_in_each_way = pytest.mark.parametrize("suffix", PACKERS)


def test_a_plain_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(CONTENT)
    text = read_text(tmp_path / "text", 10**6)
    assert text.content == CONTENT
    assert text.sizes is None


@packed_in_each_way
@pytest.mark.parametrize("named", [True, False])
def test_a_compressed_file_is_unpacked_whatever_its_name(tmp_path: Path, suffix: str, named: bool) -> None:
    path = tmp_path / (f"text{suffix}" if named else "text")
    path.write_bytes(PACKERS[suffix](CONTENT))
    assert read_text(path, 10**6).content == CONTENT


@packed_in_each_way
def test_a_truncated_archive_is_refused(tmp_path: Path, suffix: str) -> None:
    packed = PACKERS[suffix](CONTENT)
    path = tmp_path / f"text{suffix}"
    for kept in (0, 3, 20, len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:kept])
        with pytest.raises(UserError, match="damaged or truncated") as raised:
            read_text(path, 10**6)
        assert raised.value.kind == "damaged_file"


@packed_in_each_way
def test_a_damaged_archive_is_refused(tmp_path: Path, suffix: str) -> None:
    packed = bytearray(PACKERS[suffix](CONTENT))
    packed[len(packed) // 2] ^= 0xFF
    path = tmp_path / f"text{suffix}"
    path.write_bytes(packed)
    with pytest.raises(UserError, match="damaged or truncated"):
        read_text(path, 10**6)


@packed_in_each_way
def test_no_more_is_unpacked_than_tells_that_it_is_too_long(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(PACKERS[suffix](bytes(10**6)))
    assert len(read_text(path, 100).content) == 101


def test_a_zip_of_several_files_is_ambiguous(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("one", "1")
        archive.writestr("two", "2")
    with pytest.raises(UserError, match="holds 2 files"):
        read_text(tmp_path / "text.zip", 10)


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".bz2"])
def test_a_folder_gives_the_split(tmp_path: Path, suffix: str) -> None:
    for split, size in {"train": 600, "valid": 300, "test": 100}.items():
        (tmp_path / f"{split}{suffix}").write_bytes(PACKERS.get(suffix, bytes)(split[:1].encode() * size))
    text = read_text(tmp_path, 10**6)
    assert text.content == b"t" * 600 + b"v" * 300 + b"t" * 100
    assert text.sizes == (600, 300, 100)


@pytest.mark.parametrize("absent", ["train", "valid", "test"])
def test_a_folder_without_one_of_the_splits_is_refused(tmp_path: Path, absent: str) -> None:
    for split in {"train", "valid", "test"} - {absent}:
        (tmp_path / split).write_bytes(b"text")
    with pytest.raises(UserError, match=f"no {absent} file") as raised:
        read_text(tmp_path, 10)
    assert raised.value.kind == "missing_file"
    assert ".xz" in raised.value.hint


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as raised:
        read_text(tmp_path / "nothing", 10)
    assert raised.value.kind == "missing_file"


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "text").write_bytes(b"abc")
    assert read_text(Path("~/text"), 10).content == b"abc"

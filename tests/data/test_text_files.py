from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efftx.data import text_files
from efftx.data.text_files import find_files, local_path, read_file, read_text, sums_of
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


def test_an_empty_file_is_no_archive_whatever_the_case_of_its_ending(tmp_path: Path) -> None:
    (tmp_path / "text.GZ").write_bytes(b"")
    with pytest.raises(UserError, match="damaged or truncated"):
        read_text(tmp_path / "text.GZ", 10)


def test_what_macos_adds_to_a_zip_is_no_file_of_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        for name in ("my/text", "__MACOSX/my/._text", "my/.DS_Store"):
            archive.writestr(name, name)
    assert read_text(tmp_path / "text.zip", 10).content == b"my/text"


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


def test_a_folder_of_everything_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MOST_FILES", 3)
    for i in range(3):
        (tmp_path / f"{i}.txt").write_bytes(b"x")
    assert len(find_files(str(tmp_path), "")) == len(find_files(f"{tmp_path}/*", "")) == 3
    (tmp_path / "4.txt").write_bytes(b"x")
    for path in (str(tmp_path), f"{tmp_path}/*"):
        with pytest.raises(UserError, match="holds more than 3 files"):
            find_files(path, "")


@pytest.mark.parametrize("harm", ["folder", "pipe", "device", "missing"])
def test_what_is_no_file_is_told_and_never_waited_for(tmp_path: Path, harm: str) -> None:
    path = Path("/dev/zero") if harm == "device" else tmp_path / "text"
    if harm == "folder":
        path.mkdir()
    elif harm == "pipe":
        os.mkfifo(path)
    with pytest.raises(UserError, match="Cannot read") as raised:
        sums_of([path], "Give a file.")
    assert str(path) in raised.value.message
    assert raised.value.hint == "Give a file."
    with pytest.raises(UserError, match="Cannot read"):
        sums_of([Path("/proc/self/mem")], "")  # may be opened and not read
    if harm in ("pipe", "device"):
        with pytest.raises(UserError, match="no regular file"):
            read_text(path, 10)


@pytest.mark.parametrize("name", ["a b", "zürich", "日本", "[b]x", "a=b", "-x", "'", "#1"])
def test_any_name_a_file_can_have_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (name, str(tmp_path / name), f"./{name}", "link"):
        assert find_files(path, "") == [Path(path)]
        assert read_text(Path(path), 10).content == b"abc"


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a\0b", "x" * 5000, "loop", "file/inside"])
def test_what_can_be_no_path_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        find_files(path, "hint")
    assert raised.value.kind == "missing_file"


def test_a_folder_and_a_pattern_give_their_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.txt", "a/c.txt", "a/d.md", ".hidden", ".git/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = [tmp_path / "a" / "c.txt", tmp_path / "a" / "d.md", tmp_path / "b.txt"]
    assert find_files(str(tmp_path), "") == find_files("~", "") == found
    assert find_files(f"{tmp_path}/**/*.txt", "") == [found[0], found[2]]
    assert find_files("~/a/?.*", "") == found[:2]
    for none in (f"{tmp_path}/*.html", "~/e", str(tmp_path / "empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"does not exist|holds no file") as raised:
            find_files(none, "hint")
        assert (raised.value.kind, raised.value.hint) == ("missing_file", "hint")


@given(path=st.text(max_size=12))
def test_any_text_as_a_path_is_a_path_or_told(path: str) -> None:
    with contextlib.suppress(UserError):
        local_path(path)
    with contextlib.suppress(UserError):
        find_files(f"/nowhere/{path}", "hint")


@pytest.mark.parametrize("suffix", [".xz", ".bz2"])
def test_a_file_of_several_streams_is_read_whole_or_damaged(tmp_path: Path, suffix: str) -> None:
    compress = {".xz": lzma.compress, ".bz2": bz2.compress}[suffix]
    parts = [bytes(range(256)) * 400, b"", b"the last\n"]
    streams = [compress(part) for part in parts]
    path = tmp_path / f"text{suffix}"
    for between in (b"", b"\0" * 8):
        path.write_bytes(between.join(streams) + between)
        assert read_file(path, 10**6) == b"".join(parts)
        assert read_file(path, 999) == parts[0][:1000]
    for changed in (b"?" + streams[2][1:], streams[2][:-3], b"no stream"):
        path.write_bytes(streams[0] + changed)
        with pytest.raises(UserError, match="damaged or truncated"):
            read_file(path, 10**6)

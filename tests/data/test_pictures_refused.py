"""What cannot be read as pictures is told in one message, and nothing of it is taken for a smaller data set."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efftx.cli import main
from efftx.data.dataset import open_dataset
from efftx.errors import UserError
from tests.data.archives import as_damaged_lzma, as_encrypted
from tests.data.picture_samples import SIDE, config, encoded, pictures, rows_of, saved


def bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    start = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    idat = zlib.compress(bytes(1000))
    data = struct.pack(">I", len(idat)) + b"IDAT" + idat + struct.pack(">I", zlib.crc32(b"IDAT" + idat))
    return b"\x89PNG\r\n\x1a\n" + start + data


class Runs:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def objects(folder: Path) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, images=np.array([Runs(folder / "was run")], dtype=object))
    return packed.getvalue()


def as_archive(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("readme.txt", content)
    return packed.getvalue()


BAD = [
    ("a.png", lambda folder: bomb(), "pixels: that is no photograph"),
    ("a.png", lambda folder: encoded(pictures(1, 40)[0])[:-300], "damaged or truncated"),
    ("a.png", lambda folder: b"no picture", "is no picture that can be read"),
    ("a.png", lambda folder: b"", "is no picture that can be read"),
    ("a.tif", lambda folder: encoded(np.ones((4, 4), np.float32), "TIFF"), "no bytes"),
    ("a.npz", objects, "never unpickled"),
    ("a.npy", lambda folder: pickle.dumps(Runs(folder / "was run")), "is no array of NumPy"),
    ("a.npz", lambda folder: saved(images=np.ones((2, 4, 4, 3))), "of float64, not pictures"),
    ("a.npz", lambda folder: saved(images=np.ones((2, 4, 4, 2), np.uint8)), "not pictures"),
    ("a.npz", lambda folder: saved(images=np.ones(7, np.uint8)), "not pictures"),
    ("a.npz", lambda folder: saved(images=np.asfortranarray(pictures(9))), "column by column"),
    ("a.npz", lambda folder: saved(a=np.ones(1), b=np.ones(1)), "no array called images or data"),
    ("a.npz", lambda folder: saved(images=pictures(20))[:-40], "damaged or truncated"),
    ("a.npz", lambda folder: b"PK\x03\x04 nothing", "damaged or truncated"),
    ("b.npz", lambda folder: as_encrypted(saved(images=pictures(20))), "damaged or truncated: File 'images.npy' is"),
    ("b.zip", lambda folder: as_encrypted(saved(images=pictures(20))), "is encrypted"),
    ("c.zip", lambda folder: as_damaged_lzma(saved(images=pictures(20))), "c.zip is damaged or truncated"),
    ("d.npz", lambda folder: as_archive(b"words"), "no array called images or data"),
    ("e.npz", lambda folder: saved(images=pictures(1, 20)[0]), "[20, 20, 3]: one picture in colours"),
    ("f.npz", lambda folder: saved(images=np.ones((20, 30, 4), np.uint8)), "[20, 30, 4]: one picture in colours"),
    ("a.parquet", lambda folder: b"PAR1 nothing", "cannot be read as Parquet"),
    ("a.tar", lambda folder: b"nothing", "damaged or truncated"),
    ("a.txt", lambda folder: b"words", "is no picture"),
    ("a.png", lambda folder: encoded(pictures(1)[0]), "split of data=images would have no picture"),
]


@pytest.mark.parametrize(("name", "content", "says"), BAD, ids=[says for _, _, says in BAD])
def test_what_cannot_be_read_is_one_message_and_exit_code_2(
    name: str, content: Callable[[Path], bytes], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content(tmp_path))
    words = ["data", "prepare", "images", f"data.path={tmp_path / name}", f"data.side={SIDE}", "--json"]
    assert main(words) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert says in error["message"]
    assert error["hint"]
    assert not (tmp_path / "was run").exists()


def test_an_array_of_more_than_its_file_holds_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(  # type: ignore[no-untyped-call]
        header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 4, 4, 3)}
    )
    (tmp_path / "a.npy").write_bytes(header.getvalue() + bytes(480))
    with pytest.raises(UserError, match="ends before its array does"):
        open_dataset(config(tmp_path / "a.npy"))


def tar_of(every: np.ndarray) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for number, one in enumerate(every):
            content = encoded(one)
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def bad_header(archive: bytes) -> bytes:
    """The checksum in the header of the second member, which stands in the third block, is another."""
    return archive[: 1024 + 148] + b"\xff" + archive[1024 + 149 :]


def bad_header_compressed(archive: bytes) -> bytes:
    return gzip.compress(bad_header(archive))


def cut_within_a_header(archive: bytes) -> bytes:
    return archive[: 20 * 1024 + 100]


def cut_between_members(archive: bytes) -> bytes:
    return archive[: 20 * 1024]


@pytest.mark.parametrize("damaged", [bad_header, bad_header_compressed, cut_within_a_header, cut_between_members])
def test_a_tar_that_does_not_reach_its_end_is_damaged_and_not_smaller(
    damaged: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    whole = tar_of(pictures(40))
    assert whole[1024 : 1024 + 5] == b"1.png"
    (tmp_path / "a.tar").write_bytes(gzip.compress(whole))
    assert len(rows_of(tmp_path / "a.tar", "test")) == 2
    (tmp_path / "a.tar").write_bytes(damaged(whole))
    with pytest.raises(UserError, match=r"a\.tar is damaged or truncated: .*end") as raised:
        open_dataset(config(tmp_path / "a.tar"))
    assert raised.value.hint


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.zip"])
def test_an_array_that_says_it_holds_fewer_pictures_than_its_file_is_damaged(name: str, tmp_path: Path) -> None:
    packed = io.BytesIO()
    np.save(packed, pictures(40))
    array = packed.getvalue().replace(b"(40, 4", b"(30, 4")
    if name != "a.npy":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("images.npy", array)
    else:
        (tmp_path / name).write_bytes(array)
    with pytest.raises(UserError, match="goes on after its array") as raised:
        open_dataset(config(tmp_path / name))
    assert raised.value.kind == "damaged_file"

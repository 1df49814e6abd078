"""Files become rows of one square picture each, by conversions that are stated, and what cannot be read is told."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efftx.cli import main
from efftx.config.compose import compose
from efftx.data.dataset import find_source, notes_of, open_dataset
from efftx.data.picture import box_filter, conversion_notes, grid_png, read_picture, square_of
from efftx.data.pictures import Picture, PictureRows, PicturesConfig
from efftx.errors import UserError
from efftx.evaluation.compressed import png_bits
from efftx.evaluation.trivial import Question, trivial_answer
from tests.data.archives import as_damaged_lzma, as_encrypted

SIDE = 4


def config(path: Path | None, side: int = SIDE, name: str = "images") -> PicturesConfig:
    return PicturesConfig(name, 3 * side * side, str(path) if path else None, side=side)


def pictures(count: int, side: int = SIDE, first: int = 0) -> np.ndarray:
    """Different pictures: the first byte of number i is i."""
    values = np.random.RandomState(0).randint(0, 256, (count, side, side, 3)).astype(np.uint8)
    values[:, 0, 0, 0] = np.arange(first, first + count)
    return values


def encoded(array: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(array).save(packed, form, **options)
    return packed.getvalue()


def rows_of(path: Path, split: str, side: int = SIDE) -> np.ndarray:
    """All pictures of valid or test, (n, side, side, 3)."""
    dataset = open_dataset(config(path, side))
    batches = [dataset.batch(split, 0, i, 2).tokens_BL for i in range(dataset.n_batches(split, 2) or 0)]
    return np.concatenate([batch.numpy() for batch in batches]).reshape(-1, side, side, 3)


def naive_box(square: np.ndarray, side: int) -> np.ndarray:
    n = len(square)
    out = np.empty((side, side, 3), np.uint8)
    for i, j, c in np.ndindex(side, side, 3):
        total = Fraction(0)
        for y, x in np.ndindex(n, n):
            tall = min(Fraction(n * (i + 1), side), y + 1) - max(Fraction(n * i, side), y)
            wide = min(Fraction(n * (j + 1), side), x + 1) - max(Fraction(n * j, side), x)
            total += max(tall, 0) * max(wide, 0) * int(square[y, x, c])
        out[i, j, c] = int(total * Fraction(side * side, n * n) + Fraction(1, 2))
    return out


@given(st.integers(1, 7), st.integers(0, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_the_box_filter_is_the_mean_over_equal_areas(side: int, more: int, seed: int) -> None:
    square = np.random.RandomState(seed).randint(0, 256, (side + more, side + more, 3)).astype(np.uint8)
    assert (box_filter(square, side) == naive_box(square, side)).all()


def test_a_picture_that_is_not_square_is_cut_at_its_centre_and_a_small_one_left_out() -> None:
    done: Counter[str] = Counter()
    wide = pictures(1, 8)[0][:4]
    square = square_of(wide, 4, done)
    assert square is not None
    assert (square == wide[:, 2:6]).all()
    assert square_of(wide, 5, done) is None
    assert done == {"cropped": 1, "small": 1}
    assert conversion_notes(done) == [
        "Pictures that are not square, cut to the square at their centre: 1.",
        "Pictures smaller than data.side, left out: 1.",
    ]


RGB = pictures(1)[0]
GREY = RGB[:, :, 0]
ALPHA = np.concatenate([RGB, np.full((SIDE, SIDE, 1), 255, np.uint8)], 2)
HALF = ALPHA.copy()
HALF[0, 0] = (10, 20, 30, 0)
OVER_WHITE = RGB.copy()
OVER_WHITE[0, 0] = 255
DEEP = (GREY.astype(np.uint16) << 8) + 77


def deep_colours() -> bytes:
    """A PNG of 16 bits a colour, which Pillow does not write."""
    raw = b"".join(b"\0" + (row.astype(int) * 256 + 9).astype(">u2").tobytes() for row in RGB)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def animated() -> bytes:
    packed = io.BytesIO()
    frames = [Image.fromarray(one) for one in pictures(3)]
    frames[0].save(packed, "PNG", save_all=True, append_images=frames[1:])
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "pixels", "done"),
    [
        (encoded(RGB), RGB, {}),
        (encoded(GREY), np.repeat(GREY[:, :, None], 3, 2), {"grey": 1}),
        (encoded(ALPHA), RGB, {}),
        (encoded(HALF), OVER_WHITE, {"alpha": 1}),
        (encoded(DEEP), np.repeat(GREY[:, :, None], 3, 2), {"grey": 1, "16 bits": 1}),
        (deep_colours(), RGB, {"16 bits": 1}),
        (animated(), RGB, {"animated": 1}),
    ],
    ids=["rgb", "grey", "opaque", "transparent", "grey of 16 bits", "colours of 16 bits", "animated"],
)
def test_what_is_not_rgb_of_eight_bits_is_converted_and_counted(
    content: bytes, pixels: np.ndarray, done: dict[str, int]
) -> None:
    counted: Counter[str] = Counter()
    assert (read_picture(content, "it", counted) == pixels).all()
    assert counted == done


def test_inks_become_colours_and_a_camera_is_held_upright() -> None:
    done: Counter[str] = Counter()
    inks = io.BytesIO()
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(inks, "TIFF")
    assert (read_picture(inks.getvalue(), "it", done)[0, 0] == (0, 255, 255)).all()
    assert done == {"colours": 1}
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    upright = read_picture(encoded(RGB, exif=turned), "it", done)
    assert (upright == RGB[::-1, ::-1]).all()


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


def saved(**arrays: np.ndarray) -> bytes:
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
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
    ("a.png", lambda folder: encoded(RGB), "split of data=images would have no picture"),
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


def in_array(folder: Path, every: np.ndarray) -> Path:
    (folder / "all.npz").write_bytes(saved(images=every, names=np.array(["a"])))
    return folder / "all.npz"


def in_planes(folder: Path, every: np.ndarray) -> Path:
    (folder / "all.npz").write_bytes(saved(data=every.transpose(0, 3, 1, 2).reshape(len(every), -1)))
    return folder / "all.npz"


def with_planes_first(folder: Path, every: np.ndarray) -> Path:
    np.save(folder / "all.npy", every.transpose(0, 3, 1, 2).copy())
    return folder / "all.npy"


def as_files(folder: Path, every: np.ndarray) -> Path:
    (folder / "all").mkdir()
    for number, one in enumerate(every):
        (folder / "all" / f"{number:02}.png").write_bytes(encoded(one))
    return folder / "all"


def in_tar(folder: Path, every: np.ndarray) -> Path:
    with tarfile.open(folder / "all.tar", "w") as archive:
        archive.add(as_files(folder, every), "all")
    return folder / "all.tar"


def in_zip(folder: Path, every: np.ndarray) -> Path:
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for number in (10, 2):  # in the order of the numbers, not of the words
            part = every[:10] if number == 2 else every[10:]
            archive.writestr(f"all/batch_{number}.npz", saved(data=part.transpose(0, 3, 1, 2).reshape(len(part), -1)))
        archive.writestr("all/readme.txt", "words")
    return folder / "all.zip"


def in_zip_of_macos(folder: Path, every: np.ndarray) -> Path:
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for number, one in enumerate(every):
            archive.writestr(f"pics/{number}.png", encoded(one))
            archive.writestr(f"__MACOSX/pics/._{number}.png", "no picture")
        archive.writestr("pics/.hidden/x.png", "no picture")
    return folder / "all.zip"


def in_zip_with_signs_like_digits(folder: Path, every: np.ndarray) -> Path:
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for number, one in enumerate(every):
            archive.writestr(f"\u00b2{'9' * 5000}\u2460{number}.png", encoded(one))
    return folder / "all.zip"


def in_tar_with_hidden_files(folder: Path, every: np.ndarray) -> Path:
    names = as_files(folder, every)
    (names / "._0.png").write_bytes(b"no picture")
    with tarfile.open(folder / "all.tar", "w") as archive:
        for file in sorted(names.iterdir()):
            archive.add(file, f"./all/{file.name}")
    return folder / "all.tar"


def in_parquet(folder: Path, every: np.ndarray) -> Path:
    import pyarrow
    import pyarrow.parquet

    rows = [{"image": {"bytes": encoded(one), "path": None}, "label": 0} for one in every]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "all.parquet")
    return folder / "all.parquet"


def in_pack(folder: Path, every: np.ndarray) -> Path:
    files = [encoded(one) for one in every]
    offsets = np.cumsum([0, *map(len, files)])
    (folder / "all.npz").write_bytes(saved(jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets))
    return folder / "all.npz"


FORMS = [
    in_array,
    in_planes,
    with_planes_first,
    as_files,
    in_tar,
    in_zip,
    in_parquet,
    in_pack,
    in_zip_of_macos,
    in_zip_with_signs_like_digits,
    in_tar_with_hidden_files,
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows_split_90_5_5(form: Callable[[Path, np.ndarray], Path], tmp_path: Path) -> None:
    every = pictures(40)
    path = form(tmp_path, every)
    assert (rows_of(path, "valid") == every[36:38]).all()
    assert (rows_of(path, "test") == every[38:]).all()
    dataset = open_dataset(config(path))
    assert dataset.variant.startswith(
        f"images[{path.name if path.is_file() else '00.png+...+39.png (40 files)'} sha256:"
    )
    assert dataset.variant.endswith(" 36+2+2 pictures, 90/5/5,4x4]")
    assert (dataset.vocab_size, dataset.unit, dataset.length, dataset.input_length) == (256, "bits/dim", 48, 0)


def test_a_training_row_is_one_whole_picture_drawn_alike_whatever_the_batch(tmp_path: Path) -> None:
    every = pictures(40)
    dataset = open_dataset(config(in_array(tmp_path, every)))
    rows = dataset.batch("train", 0, 3, 200).tokens_BL.numpy()
    known = {one.tobytes(): number for number, one in enumerate(every)}
    drawn = [known[row.astype(np.uint8).tobytes()] for row in rows]
    assert set(drawn) == set(range(36))
    assert (dataset.batch("train", 0, 3, 5).tokens_BL.numpy() == rows[:5]).all()
    assert (dataset.batch("train", 1, 3, 200).tokens_BL.numpy() != rows).any()
    assert bool((dataset.batch("test", 0, 0, 2).weights_BL == 1).all())
    assert dataset.n_batches("train", 2) is None


def test_the_trivial_answers_to_pictures_are_a_table_of_bytes_and_their_png(tmp_path: Path) -> None:
    every = pictures(40)
    dataset = open_dataset(config(in_array(tmp_path, every)))
    assert isinstance(dataset, PictureRows)
    assert dataset.picture_shape == (SIDE, SIDE, 3)
    found = trivial_answer(dataset, Question("compressed", codec="png"))
    assert found["bits_per_dim"] == pytest.approx(png_bits(every[38:]))
    table = trivial_answer(dataset, Question("ngram", order=1))["bits_per_dim"]
    assert 7 < table < 10  # random bytes


def test_files_named_by_split_are_the_splits(tmp_path: Path) -> None:
    every = pictures(9)
    for split, part in (("train", every[:4]), ("val", every[4:7]), ("test", every[7:])):
        (tmp_path / split / "class").mkdir(parents=True)
        for number, one in enumerate(part):
            (tmp_path / split / "class" / f"{number}.png").write_bytes(encoded(one))
    assert (rows_of(tmp_path, "valid") == every[4:7]).all()
    assert (rows_of(tmp_path, "test") == every[7:]).all()
    assert open_dataset(config(tmp_path)).variant.endswith(" 4+3+2 pictures,4x4]")


@pytest.mark.parametrize("form", [in_array, in_zip, in_parquet])
def test_pictures_in_two_forms_of_a_file_are_read_once(
    form: Callable[[Path, np.ndarray], Path], tmp_path: Path
) -> None:
    every = pictures(40)
    np.save(tmp_path / "all.npy", every)
    form(tmp_path, every)
    (tmp_path / "cover.png").write_bytes(encoded(every[0]))
    (tmp_path / "cover.jpg").write_bytes(encoded(every[0]))
    dataset = open_dataset(config(tmp_path))
    assert "37+2+3 pictures, 90/5/5" in dataset.variant
    assert "all." in "".join(notes_of(dataset))


def test_an_archive_beside_the_folder_that_it_unpacks_to_is_left_out(tmp_path: Path) -> None:
    in_tar(tmp_path, pictures(40))  # of the folder that is left there
    dataset = open_dataset(config(tmp_path))
    assert "36+2+2 pictures, 90/5/5" in dataset.variant
    assert notes_of(dataset) == ("Left out: all.tar, other forms of files that are read.",)


def test_pictures_of_several_sizes_are_brought_to_one_and_the_note_says_so(tmp_path: Path) -> None:
    every = pictures(40, 8)
    folder = as_files(tmp_path, every)
    (folder / "38.png").write_bytes(encoded(every[38][:, :6]))
    (folder / "39.png").write_bytes(encoded(every[39][:2]))
    dataset = open_dataset(config(folder))
    assert getattr(dataset, "notes", ()) == (
        "Pictures that are not square, cut to the square at their centre: 1.",
        "Pictures smaller than data.side, left out: 1.",
    )
    assert dataset.variant.endswith(" 35+2+2 pictures, 90/5/5,4x4]")
    assert (rows_of(folder, "test")[-1] == naive_box(every[38][1:7, :6], SIDE)).all()


def test_a_row_of_pictures_is_as_long_as_a_picture_whatever_a_preset_says() -> None:
    base = ["model=transformer", "data=photos", "size=smoke"]
    assert compose(base).data.length == 3 * 4 * 4
    assert compose(["model=reformer", "data=photos", "size=cpu"]).data.length == 3 * 16 * 16
    assert compose(["model=transformer", "data=imagenet64", "size=paper"]).data.length == 12288
    assert compose(["model=transformer", "data=cifar10", "size=paper"]).data.length == 3072
    with pytest.raises(UserError, match=r"'data\.length' would change nothing: a row is one picture"):
        compose([*base, "data.length=48"])
    with pytest.raises(UserError, match=r"data\.side=0 must be at least 1"):
        compose([*base, "data.side=0"])
    with pytest.raises(UserError, match=r"holds 64 positions, but data\.length=192"):
        compose([*base, "data.side=8"])


def test_a_rendering_reads_a_picture_and_writes_a_grid(tmp_path: Path) -> None:
    how = find_source("images").rendering(config(None))
    assert how.kind == "picture"
    big = pictures(1, 8)[0]
    (tmp_path / "a.png").write_bytes(encoded(big))
    tokens = how.encode(str(tmp_path / "a.png"))
    assert tokens == naive_box(big, SIDE).reshape(-1).tolist()
    (tmp_path / "b.png").write_bytes(encoded(big[:3]))
    with pytest.raises(UserError, match="no picture of 4 x 4 pixels or more"):
        how.encode(str(tmp_path / "b.png"))
    with pytest.raises(UserError, match="No such file"):
        how.encode(str(tmp_path / "c.png"))
    ((suffix, content),) = how.files([tokens, tokens[:24], tokens])
    assert suffix == ".png"
    shown = np.asarray(Image.open(io.BytesIO(content)))
    assert shown.shape == (10, 10, 3)
    assert (shown[:4, :4].reshape(-1) == tokens).all()
    assert (shown[:2, 6:].reshape(-1) == tokens[:24]).all()
    assert (shown[2:4, 6:] == 0x80).all()
    assert (shown[6:, :4].reshape(-1) == tokens).all()
    assert (shown[6:, 6:] == 0xFF).all()
    assert how.files([tokens]) == how.files([tokens])
    assert grid_png([RGB]) == Picture(SIDE).files([RGB.reshape(-1).tolist()])[0][1]

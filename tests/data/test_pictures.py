"""Files become rows of one square picture each, by conversions that are stated."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from efftx.config.compose import compose
from efftx.data.dataset import find_source, notes_of, open_dataset
from efftx.data.picture import box_filter, conversion_notes, grid_png, read_picture, square_of
from efftx.data.pictures import Picture, PictureRows
from efftx.errors import UserError
from efftx.evaluation.compressed import png_bits
from efftx.evaluation.trivial import Question, trivial_answer
from tests.data.picture_samples import SIDE, config, encoded, pictures, rows_of, saved


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

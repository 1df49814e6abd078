"""CIFAR-10 and both editions of ImageNet64 are known by their bytes; the photographs ship with the package."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efftx.data import cifar10, imagenet64
from efftx.data.dataset import Dataset, notes_of, open_dataset
from efftx.data.imagenet64 import Archive, Edition, ImageNetConfig
from efftx.data.picture import box_filter
from efftx.data.pictures import PicturesConfig
from efftx.errors import UserError


def random_pictures(seed: int, count: int, side: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, side, side, 3)).astype(np.uint8)


def split_of(dataset: Dataset, split: str, side: int) -> np.ndarray:
    n = dataset.n_batches(split, 1) or 0
    rows = [dataset.batch(split, 0, i, 1).tokens_BL.numpy() for i in range(n)]
    return np.concatenate(rows).reshape(-1, side, side, 3).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "PNG")
    return packed.getvalue()


# ---- the photographs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [4, 16, 64, 100])
def test_the_photographs_are_on_every_machine_and_no_split_has_anothers(side: int) -> None:
    dataset = open_dataset(PicturesConfig("photos", 3 * side * side, side=side))
    assert dataset.variant.endswith(f" pictures,{side}x{side}]")
    valid, test = split_of(dataset, "valid", side), split_of(dataset, "test", side)
    assert len(valid) >= 4
    assert len(test) >= 4
    train = dataset.batch("train", 0, 0, 64).tokens_BL.numpy().astype(np.uint8)
    held_out = {one.tobytes() for one in (*valid, *test)}
    assert not held_out & {row.tobytes() for row in train}


def test_the_cuttings_of_a_smaller_side_are_those_of_a_larger_one_box_filtered() -> None:
    large, small = (open_dataset(PicturesConfig("photos", 3 * side * side, side=side)) for side in (64, 16))
    expected = [box_filter(one, 16) for one in split_of(large, "test", 64)]
    assert (split_of(small, "test", 16) == np.stack(expected)).all()
    assert large.variant == "photos[457+28+16 pictures,64x64]"
    assert small.checksum != large.checksum


def test_the_photographs_bytes_are_the_same_on_every_machine() -> None:
    dataset = open_dataset(PicturesConfig("photos", 3 * 16 * 16, side=16))
    assert dataset.checksum == "25b884cced48e8af060f37431344c33fb6f48a970bf73d6135b1f6330c379b35"


# ---- CIFAR-10 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "N_VALID", 3)
    monkeypatch.setattr(imagenet64, "N_VALID", 3)


def expected_split(train: np.ndarray) -> tuple[list[int], list[int]]:
    order = np.random.RandomState(11172018).permutation(len(train))
    return sorted(order[:3].tolist()), sorted(order[3:].tolist())


def test_cifar10_from_the_hub_is_split_by_the_authors_seed(few_held_out: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"train": random_pictures(0, 12, 32), "test": random_pictures(1, 4, 32)}

    def rows(self: Any, split: str, hint: str, *, undecoded: str | None = None) -> Iterator[dict[str, Any]]:
        assert undecoded == "img"
        return ({"img": {"bytes": png(one), "path": None}, "label": 0} for one in given[split])

    monkeypatch.setattr("efftx.data.hub.HubRows.rows", rows)
    dataset = open_dataset(PicturesConfig("cifar10", 3072, side=32))
    assert (dataset.name, dataset.variant) == ("cifar10", "cifar10[9+3+4 pictures,32x32]")
    valid, train = expected_split(given["train"])
    order = np.random.RandomState(11172018).permutation(12)[:3]
    assert sorted(order.tolist()) == valid
    assert (split_of(dataset, "valid", 32) == given["train"][order]).all()
    assert (split_of(dataset, "test", 32) == given["test"]).all()
    drawn = {row.astype(np.uint8).tobytes() for row in dataset.batch("train", 0, 0, 200).tokens_BL.numpy()}
    assert drawn == {given["train"][i].tobytes() for i in train}


def test_cifar10_is_read_from_its_authors_archive_and_from_no_other(
    few_held_out: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = random_pictures(0, 10, 32), random_pictures(1, 2, 32)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as members:
        for name, part in [(f"data_batch_{i}", train[2 * i - 2 : 2 * i]) for i in range(1, 6)] + [("test_batch", test)]:
            rows = b"".join(b"\x07" + one.transpose(2, 0, 1).tobytes() for one in part)
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(rows)
            members.addfile(info, io.BytesIO(rows))
    config = PicturesConfig("cifar10", 3 * 16 * 16, str(tmp_path), side=16)
    with pytest.raises(UserError, match="holds no file of pictures"):
        open_dataset(config)
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    dataset = open_dataset(config)
    assert dataset.variant == "cifar10[7+3+2 pictures,16x16]"
    assert (split_of(dataset, "test", 16) == [box_filter(one, 16) for one in test]).all()


def test_other_pictures_are_not_called_cifar10(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=random_pictures(0, 40, 32))
    dataset = open_dataset(PicturesConfig("cifar10", 3072, str(tmp_path), side=32))
    assert dataset.name == "images"
    assert dataset.variant.startswith("images[train.npz sha256:")
    assert any("is not known to be CIFAR-10" in note for note in notes_of(dataset))
    with pytest.raises(UserError, match="more than the 32 pixels"):
        open_dataset(PicturesConfig("cifar10", 3 * 64 * 64, side=64))


# ---- ImageNet64 ------------------------------------------------------------------------------------------------------


def zipped(path: Path, batches: list[np.ndarray]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number, batch in enumerate(batches, 1):
            packed = io.BytesIO()
            np.savez_compressed(packed, data=batch.transpose(0, 3, 1, 2).reshape(len(batch), -1))
            archive.writestr(f"{path.stem}/train_data_batch_{number}.npz", packed.getvalue())


def tarred(path: Path, pictures: np.ndarray) -> None:
    with tarfile.open(path, "w") as archive:
        for number, one in enumerate(pictures):
            content = png(one)
            info = tarfile.TarInfo(f"{path.stem}/{number:07}.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def as_archive(path: Path) -> Archive:
    return Archive(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def editions(few_held_out: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Both editions with a handful of pictures at 16 pixels, each in a folder, and known by these files' sums."""
    folders = {name: tmp_path / name for name in ("new", "old")}
    for folder in folders.values():
        folder.mkdir()
    train = random_pictures(0, 8, 16)
    zipped(folders["new"] / "train_part1_npz.zip", [train[:3], train[3:5]])
    zipped(folders["new"] / "train_part2_npz.zip", [train[5:]])
    zipped(folders["new"] / "val_npz.zip", [random_pictures(1, 2, 16)])
    tarred(folders["old"] / "train_16x16.tar", random_pictures(2, 7, 16))
    tarred(folders["old"] / "valid_16x16.tar", random_pictures(3, 2, 16))
    new, old = folders["new"], folders["old"]
    parts = (as_archive(new / "train_part1_npz.zip"), as_archive(new / "train_part2_npz.zip"))
    known = {
        "chrabaszcz2017": Edition("http://127.0.0.1:9", {16: parts}, {16: as_archive(new / "val_npz.zip")}),
        "oord2016": Edition(
            None, {16: (as_archive(old / "train_16x16.tar"),)}, {16: as_archive(old / "valid_16x16.tar")}
        ),
    }
    monkeypatch.setattr(imagenet64, "EDITIONS", known)
    return folders


def imagenet(path: Path | None, side: int, edition: str) -> ImageNetConfig:
    return ImageNetConfig("imagenet64", 3 * side * side, str(path) if path else None, side=side, edition=edition)


def test_an_edition_is_known_by_its_archives_and_named_with_what_was_done_to_it(editions: dict[str, Path]) -> None:
    new = open_dataset(imagenet(editions["new"], 16, "chrabaszcz2017"))
    assert (new.name, new.variant) == ("imagenet64", "imagenet64[chrabaszcz2017 5+3+2 pictures,16x16]")
    assert (split_of(new, "valid", 16) == random_pictures(0, 8, 16)[5:]).all()
    assert (split_of(new, "test", 16) == random_pictures(1, 2, 16)).all()
    drawn = {row.astype(np.uint8).tobytes() for row in new.batch("train", 0, 0, 200).tokens_BL.numpy()}
    assert drawn == {one.tobytes() for one in random_pictures(0, 8, 16)[:5]}
    old = open_dataset(imagenet(editions["old"], 8, "oord2016"))
    assert old.variant == "imagenet64[oord2016 box from 16x16 4+3+2 pictures,8x8]"
    assert (split_of(old, "test", 8) == [box_filter(one, 8) for one in random_pictures(3, 2, 16)]).all()


@pytest.mark.parametrize(("folder", "asked"), [("new", "oord2016"), ("old", "chrabaszcz2017")])
def test_one_edition_is_never_taken_for_the_other(editions: dict[str, Path], folder: str, asked: str) -> None:
    with pytest.raises(UserError, match="is ImageNet64 of edition") as told:
        open_dataset(imagenet(editions[folder], 16, asked))
    assert "data.edition=" in told.value.hint
    assert "do not compare" in told.value.hint


def test_a_part_of_an_edition_is_the_users_own_pictures(editions: dict[str, Path]) -> None:
    (editions["new"] / "train_part2_npz.zip").unlink()
    dataset = open_dataset(imagenet(editions["new"], 8, "chrabaszcz2017"))
    assert dataset.name == "images"
    assert any("not known to be ImageNet64 of either edition" in note for note in notes_of(dataset))


def test_without_files_one_edition_is_downloaded_and_the_other_says_what_is_missing(
    editions: dict[str, Path], root: Path
) -> None:
    with pytest.raises(UserError, match=r"Cannot reach http://127\.0\.0\.1:9/train_part1_npz\.zip") as told:
        open_dataset(imagenet(None, 16, "chrabaszcz2017"))
    assert "train_part1_npz.zip and train_part2_npz.zip and val_npz.zip" in told.value.hint
    with pytest.raises(UserError, match="has no address any more") as told:
        open_dataset(imagenet(None, 16, "oord2016"))
    assert f"train_16x16.tar and valid_16x16.tar into {root / 'imagenet64'}" in told.value.hint
    root.mkdir(exist_ok=True)
    editions["old"].rename(root / "imagenet64")
    assert open_dataset(imagenet(None, 16, "oord2016")).name == "imagenet64"
    with pytest.raises(UserError, match="more than the 16 pixels"):
        open_dataset(imagenet(editions["new"], 32, "chrabaszcz2017"))
    with pytest.raises(UserError, match="is no edition") as told:
        open_dataset(imagenet(editions["new"], 16, "oord"))
    assert "oord2016" in told.value.hint


def test_an_archive_is_asked_for_only_to_be_prepared(
    editions: dict[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(url: str, target: Path, n_bytes: int, sha256: str, hint: str) -> Path:
        asked.append(url.rpartition("/")[2])
        return editions["new"] / asked[-1]

    monkeypatch.setattr(imagenet64, "download", download)
    first = open_dataset(imagenet(None, 16, "chrabaszcz2017"))
    assert asked == ["train_part1_npz.zip", "train_part2_npz.zip", "val_npz.zip"]
    assert open_dataset(imagenet(None, 16, "chrabaszcz2017")).checksum == first.checksum
    assert len(asked) == 3


# ---- real pictures ---------------------------------------------------------------------------------------------------


def test_real_pictures_of_64_pixels_are_read_as_they_are(samples: Path) -> None:
    folder = samples / "data" / "imagenet64"
    dataset = open_dataset(imagenet(folder, 64, "chrabaszcz2017"))
    assert dataset.variant.startswith("images[train.npz+valid.npz+test.npz sha256:")
    assert dataset.variant.endswith(" 799+100+100 pictures,64x64]")
    assert (split_of(dataset, "test", 64) == np.load(folder / "test.npz")["images"]).all()


def test_real_pictures_in_a_pack_of_jpeg_files_are_decoded(samples: Path) -> None:
    dataset = open_dataset(PicturesConfig("images", 3072, str(samples / "data" / "cifar10" / "test.npz"), side=32))
    assert dataset.variant.endswith(" 9000+500+500 pictures, 90/5/5,32x32]")

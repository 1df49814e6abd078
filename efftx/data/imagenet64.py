"""ImageNet at 64 x 64 pixels (Sparse Transformers, tables 1 and 4's models; figures 1 and 5), in its two editions.

Density figures of one edition do not compare with those of the other:

* `oord2016`: the old downsampled ImageNet of van den Oord et al. (2016), PNG files in train_64x64.tar and
  valid_64x64.tar; the edition of this paper's time. Its first address is gone.
* `chrabaszcz2017`: whole pictures resized by a box filter, of Chrabaszcz et al. (2017), arrays in Imagenet64_*_npz.zip.

The published validation pictures are the test split, as in the paper's table; valid is the end of the training set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from efftx.data.documents import identity_of
from efftx.data.download import download
from efftx.data.known_files import not_known
from efftx.data.picture_files import find_pictures, read_squares
from efftx.data.pictures import (
    Pictures,
    PicturesConfig,
    counted,
    hold_out,
    own_pictures,
    picture_source,
    prepare_pictures,
    row_length,
    write_split,
)
from efftx.data.prepared import Prepared, data_root
from efftx.data.samples import resolve_path
from efftx.data.text_files import sums_of
from efftx.errors import UserError, nearest

LICENCE = "ImageNet's terms: non-commercial research only"
N_VALID = 10_000
"""The last training pictures, which are held out."""


@dataclass
class ImageNetConfig(PicturesConfig):
    """`edition`: oord2016 or chrabaszcz2017; below 64 pixels the smallest published size that holds `side`."""

    edition: str = "chrabaszcz2017"


@dataclass(frozen=True)
class Archive:
    """A published file: its name, size in bytes and SHA-256."""

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class Edition:
    """The archives of each published side, of training and of validation; `url` is their folder, None where gone."""

    url: str | None
    train: dict[int, tuple[Archive, ...]]
    test: dict[int, Archive]

    def side_for(self, side: int) -> int:
        """The smallest published side that is not below `side`; UserError where there is none."""
        if side > max(self.test):
            message = f"data.side={side} is more than the {max(self.test)} pixels of ImageNet64's pictures."
            raise UserError("bad_value", message, f"Set data.side={max(self.test)} or less.")
        return min(published for published in self.test if published >= side)

    def side_of(self, sums: Iterable[str]) -> int | None:
        """The published side whose archives, all of them, have these SHA-256 sums."""
        return next((side for side in self.test if {a.sha256 for a in self.archives(side)} == set(sums)), None)

    def archives(self, side: int) -> tuple[Archive, ...]:
        """Those of a published side, that of validation last."""
        return (*self.train[side], self.test[side])


# Sizes and sums are those that TensorFlow Datasets verifies (imagenet_resized, downsampled_imagenet).
EDITIONS = {
    "chrabaszcz2017": Edition(
        url="https://image-net.org/data/downsample",
        train={
            8: (
                Archive(
                    "Imagenet8_train_npz.zip",
                    239_296_243,
                    "b18b72ca559afee05ad3325d12222db345fc2c557f23129d47fa439bddb4ee69",
                ),
            ),
            16: (
                Archive(
                    "Imagenet16_train_npz.zip",
                    931_837_742,
                    "dea57cdc1d4e252a9e4b76d3b0783486c13b572b883b25fae9283f19695e63b9",
                ),
            ),
            32: (
                Archive(
                    "Imagenet32_train_npz.zip",
                    3_580_435_279,
                    "94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc",
                ),
            ),
            64: (
                Archive(
                    "Imagenet64_train_part1_npz.zip",
                    6_783_426_789,
                    "9422dc1dc5d092e9814a70a1cb7fc74880d2db5d88a0cb8a34ee363b12bde3f1",
                ),
                Archive(
                    "Imagenet64_train_part2_npz.zip",
                    6_780_506_068,
                    "9fafc115afb7e6c301e66dc16b2d737152b427bd5dab26e1293487a6819c7f30",
                ),
            ),
        },
        test={
            8: Archive(
                "Imagenet8_val_npz.zip", 9_327_124, "001df303a5524b85045a4f6f43c79e097497cd64847cdcf5f17dd0fa416a2c23"
            ),
            16: Archive(
                "Imagenet16_val_npz.zip", 36_354_395, "6dda90de8f6fd43b204422578b4be05d3f658d7792b344de4da768a71c02c4c4"
            ),
            32: Archive(
                "Imagenet32_val_npz.zip",
                139_697_668,
                "013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a",
            ),
            64: Archive(
                "Imagenet64_val_npz.zip",
                529_522_927,
                "e1e75133158a1924135a9c6f97a80d2d237b158945e0b34074e58e6c8430eeb8",
            ),
        },
    ),
    "oord2016": Edition(
        url=None,
        train={
            32: (
                Archive(
                    "train_32x32.tar",
                    4_113_018_880,
                    "244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5",
                ),
            ),
            64: (
                Archive(
                    "train_64x64.tar",
                    12_112_588_800,
                    "e2a2c1947a748d0d256e98e6d82800d855441dc9e4de2e71a773f1324c4524d7",
                ),
            ),
        },
        test={
            32: Archive(
                "valid_32x32.tar", 161_474_560, "862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7"
            ),
            64: Archive(
                "valid_64x64.tar", 477_255_680, "eeac03ec4f585baf871d2b4cb9c974bfe345e74878a74e5820fe6eb1041629cd"
            ),
        },
    ),
}


def check_imagenet64(config: ImageNetConfig) -> None:
    """`UserError` for an unknown edition, and for a side that is more than a picture has."""
    if config.edition not in EDITIONS:
        message = f"data.edition={config.edition} is no edition of ImageNet64."
        raise UserError("bad_value", message, nearest(config.edition, EDITIONS))
    EDITIONS[config.edition].side_for(config.side)


def prepare_imagenet64(config: ImageNetConfig) -> Prepared:
    """The edition that the config names, or that the files at `config.path` are; other files as `data=images` would."""
    edition = EDITIONS[config.edition]
    path = resolve_path(config.path, config.name)
    if path is None:
        needed = edition.side_for(config.side)
        names = [archive.name for archive in edition.archives(needed)]
        return prepare_pictures(published(config, needed, names, lambda: _downloaded(config.edition, needed)), config)
    files = find_pictures(str(path))
    sums = sums_of(files.all, _hint(edition, edition.side_for(config.side)))
    for name, one in EDITIONS.items():
        if (side := one.side_of(sums)) is None:
            continue
        if name != config.edition:
            message = f"data.path={config.path} is ImageNet64 of edition {name}, and data.edition={config.edition}."
            raise UserError("other_edition", message, f"Set data.edition={name}: the two do not compare.")
        by_sum = dict(zip(sums, files.all, strict=True))
        archives = [by_sum[archive.sha256] for archive in one.archives(side)]
        return prepare_pictures(published(config, side, [path.name for path in archives], archives.copy), config)
    notes = (not_known(config.path, "ImageNet64 of either edition"),)
    return prepare_pictures(own_pictures(config, files, sums, notes), config)


def _hint(edition: Edition, side: int) -> str:
    names = " and ".join(archive.name for archive in edition.archives(side))
    return f"Put {names} into {data_root() / 'imagenet64'}, or set data.path to pictures, or use data=photos."


def _downloaded(name: str, side: int) -> list[Path]:
    """The archives of an edition, fetched where they are not there; UserError where they cannot be had."""
    edition = EDITIONS[name]
    hint = _hint(edition, side)
    if edition.url is None:
        message = f"ImageNet64 of edition {name} has no address any more, and its files are not here."
        raise UserError("missing_file", message, f"{hint} data.edition=chrabaszcz2017 is downloaded.")
    folder = data_root() / "downloads"
    return [
        download(f"{edition.url}/{archive.name}", folder / archive.name, archive.n_bytes, archive.sha256, hint)
        for archive in edition.archives(side)
    ]


def published(config: ImageNetConfig, side: int, names: list[str], find: Callable[[], list[Path]]) -> Pictures:
    """An edition's pictures of a published side, in its archives, that of validation last.

    `find` gives the archives and is called only if the pictures must be written.
    """

    def write(folder: Path) -> tuple[dict[str, int], list[str]]:
        archives = find()
        done: Counter[str] = Counter()
        train = (square for path in archives[:-1] for square in read_squares(path, config.side, done))
        n_train = write_split(folder, "train", train)
        n_test = write_split(folder, "test", read_squares(archives[-1], config.side, done))
        return hold_out(folder, n_train, row_length(config), N_VALID) | {"test": n_test}, []

    smaller = "" if side == config.side else f" box from {side}x{side}"
    return Pictures(
        name="imagenet64",
        identity=identity_of("imagenet64", config.edition, side, N_VALID),
        write=write,
        called=lambda counts: f"{config.edition}{smaller} {counted(counts)}",
        facts={"licence": LICENCE, "origin": ", ".join(names)},
    )


SOURCE = picture_source(
    "imagenet64",
    LICENCE,
    "imagenet64[chrabaszcz2017,64x64]",
    prepare_imagenet64,
    config=ImageNetConfig,
    n_bytes=(1_281_167 + 50_000) * 3 * 64**2,
    check=check_imagenet64,
)

from __future__ import annotations

import bz2
import hashlib
import zipfile
from pathlib import Path

import pytest

from efftx.config.compose import compose
from efftx.config.hash import config_hash
from efftx.data import enwiki2016
from efftx.data.dataset import Dataset, open_dataset
from efftx.data.enwik8 import Enwik8Config, Published, check_enwik8, prepare_enwik8
from efftx.data.prepared import SPLITS, Prepared
from efftx.errors import UserError

HEAD = b"<mediawiki>\n"


def page(title: str, body: str) -> bytes:
    return f"  <page>\n    <title>{title}</title>\n    <text>{body}</text>\n  </page>\n".encode()


MORE = HEAD + b"".join(page(f"New {i}", f"Unseen text number {i * i * 7919}. " * 5) for i in range(9))


@pytest.fixture
def more(monkeypatch: pytest.MonkeyPatch, root: Path) -> bytes:
    """A small text that stands for enwiki2016, at its usual place."""
    put(monkeypatch, root, MORE)
    return MORE


def put(monkeypatch: pytest.MonkeyPatch, root: Path, content: bytes) -> None:
    (root / "enwiki2016").mkdir(parents=True, exist_ok=True)
    (root / "enwiki2016" / "dump.xml.bz2").write_bytes(bz2.compress(content))
    monkeypatch.setattr(enwiki2016, "N_BYTES", len(content))
    monkeypatch.setattr(enwiki2016, "SHA256", hashlib.sha256(content).hexdigest())


def prepare(small: Published, path: Path | None = None, **keys: object) -> Prepared:
    config = Enwik8Config("enwik8", 16, None if path is None else str(path), **keys)  # type: ignore[arg-type]
    check_enwik8(config, small)
    return prepare_enwik8(config, small)


@pytest.fixture
def file(text: bytes, tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(text)
    return tmp_path / "file"


def test_the_further_text_is_training_text_alone(text: bytes, small: Published, file: Path, more: bytes) -> None:
    plain, both = prepare(small, file, n_bytes=1000), prepare(small, file, n_bytes=1000, extra="enwiki2016")
    assert both.meta["variant"] == "small[:1000] + enwiki2016"
    assert both.path("train").read_bytes() == text[:900] + more
    for split in ("valid", "test"):
        assert both.path(split).read_bytes() == plain.path(split).read_bytes()
    assert plain.meta["variant"] == "small[:1000]"
    assert "notes" not in both.meta


def test_the_checksum_covers_both_texts(
    text: bytes, small: Published, file: Path, more: bytes, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = {prepare(small, file, n_bytes=n, extra="enwiki2016").meta["sha256"] for n in (1000, 2500)}
    sums.add(prepare(small, file, n_bytes=1000).meta["sha256"])
    put(monkeypatch, root, MORE + page("Last", "One page more."))
    sums.add(prepare(small, file, n_bytes=1000, extra="enwiki2016").meta["sha256"])
    assert len(sums) == 4


def test_pages_that_stand_in_valid_or_test_are_left_out_and_counted() -> None:
    sentence = "".join(chr(97 + i * i % 26) for i in range(2 * enwiki2016.BLOCK - 1))
    held_out = b"x" * 37 + page("Atheism", "An older text.") + sentence.encode() + b"y" * 61
    pages = [page("Atheism", "A newer text."), page("Other", f"Quotes {sentence}."), page("Third", sentence[:-100])]
    kept, n_left_out = enwiki2016.without_pages_of(HEAD + b"".join(pages), held_out)
    assert (kept, n_left_out) == (HEAD + pages[2], 2)


def test_left_out_pages_show_in_the_variant_and_a_note(
    text: bytes, small: Published, file: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, root, MORE + b"  <page>\n" + text[900:])
    found = prepare(small, file, n_bytes=1000, extra="enwiki2016")
    assert found.meta["variant"] == "small[:1000] + enwiki2016[-1 pages]"
    assert found.path("train").read_bytes() == text[:900] + MORE
    assert "1 pages" in found.meta["notes"][0]


def test_any_other_text_at_its_place_is_refused(small: Published, file: Path, more: bytes, root: Path) -> None:
    (root / "enwiki2016" / "dump.xml.bz2").write_bytes(bz2.compress(more[:-1]))
    with pytest.raises(UserError, match="does not hold") as raised:
        prepare(small, file, extra="enwiki2016")
    assert raised.value.kind == "wrong_checksum"


def test_it_is_read_from_the_wheel_that_is_downloaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = root / "downloads" / enwiki2016.URL.rpartition("/")[2]
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("gensim/__init__.py", "")
        archive.writestr(enwiki2016.MEMBER, bz2.compress(MORE))
    monkeypatch.setattr(enwiki2016, "WHEEL_BYTES", wheel.stat().st_size)
    monkeypatch.setattr(enwiki2016, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(enwiki2016, "SHA256", hashlib.sha256(MORE).hexdigest())
    assert enwiki2016.read_enwiki2016() == MORE


def test_without_a_network_the_message_says_what_to_put_where(
    small: Published, file: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enwiki2016, "URL", "http://127.0.0.1:9/gensim.whl")
    with pytest.raises(UserError) as raised:
        prepare(small, file, extra="enwiki2016")
    assert raised.value.kind == "no_network"
    assert str(root / "enwiki2016") in raised.value.hint


@pytest.mark.parametrize(
    ("keys", "why"),
    [({"n_bytes": 999}, "is not known"), ({"extra": "enwiki2017"}, "no such text"), ({"n_bytes": 2500}, "has only")],
)
def test_what_does_not_fit_is_refused(
    text: bytes, small: Published, tmp_path: Path, keys: dict[str, object], why: str
) -> None:
    (tmp_path / "part").write_bytes(text[:1000])
    with pytest.raises(UserError, match=why):
        prepare(small, tmp_path / "part", **keys)


@pytest.mark.parametrize("keys", [{"n_bytes": 1000}, {"extra": "enwiki2016"}])
def test_a_users_own_text_takes_neither(small: Published, tmp_path: Path, keys: dict[str, object]) -> None:
    (tmp_path / "my.txt").write_bytes(b"A text of one's own.\n" * 90)
    with pytest.raises(UserError, match="goes with small alone"):
        prepare(small, tmp_path / "my.txt", **keys)


def test_a_prefix_is_the_same_data_wherever_it_is_cut_from(
    text: bytes, small: Published, archive: bytes, file: Path, tmp_path: Path, root: Path
) -> None:
    (root / "small").mkdir(parents=True)
    for split, piece in zip(SPLITS, (text[:1000], text[1000:2400], text[2400:2500]), strict=True):
        (root / "small" / split).write_bytes(piece)
    (tmp_path / "any.zip").write_bytes(archive)
    one = prepare(small, file, n_bytes=1000)
    assert one == prepare(small, tmp_path / "any.zip", n_bytes=1000) == prepare(small, n_bytes=1000)
    assert [one.size(split) for split in SPLITS] == [900, 50, 50]


def test_the_hash_is_that_of_the_data_and_not_of_the_keys() -> None:
    data = open_dataset(compose(["data=duplicate", "model=transformer", "size=smoke"]).data)
    one, other = (
        compose(["data=enwik8", "model=transformer", "size=smoke", *keys])
        for keys in ([], ["data.n_bytes=4150000", "data.extra=enwiki2016"])
    )
    assert config_hash(one, data) == config_hash(other, data)


@pytest.fixture
def real(samples: Path, root: Path) -> Dataset:
    (root / "enwiki2016").parent.mkdir(parents=True, exist_ok=True)
    (root / "enwiki2016").symlink_to(samples / "data" / "enwiki2016_xml")
    (root / "enwik8").symlink_to(samples / "data" / "enwik8")
    return open_dataset(Enwik8Config("enwik8", 256, n_bytes=4_150_000, extra="enwiki2016"))


def test_the_real_text_is_added_whole(real: Dataset, root: Path, samples: Path) -> None:
    assert real.variant == "enwik8[:4150000] + enwiki2016"
    (folder,) = (root / "prepared").glob("enwik8-*")
    assert (folder / "train.bin").stat().st_size == 3_735_000 + 6_089_746
    plain = open_dataset(Enwik8Config("enwik8", 256, str(samples / "data" / "enwik8")))
    for step in range(3):
        assert real.batch("valid", 0, step, 4).tokens_BL.equal(plain.batch("valid", 0, step, 4).tokens_BL)

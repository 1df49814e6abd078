from __future__ import annotations

import json
from pathlib import Path

import pytest

from efftx.cli import main
from efftx.data.c4 import C4Config
from efftx.data.catalogue import listed, prepare, verify, vocabularies
from efftx.data.dataset import DataConfig, find_source, names, open_dataset
from efftx.data.duplicate import DuplicateConfig
from efftx.data.pictures import PicturesConfig
from efftx.data.samples import licence_and_origin
from efftx.data.tokenizer import TextConfig
from efftx.errors import UserError

KEYS = {"name", "variant", "path", "bytes", "sha256", "licence", "state", "why", "notes"}


def states() -> dict[str, str]:
    return {row["name"]: row["state"] for name in names() for row in listed(name)}


def test_every_data_set_is_listed_before_anything_is_prepared(root: Path) -> None:
    rows = [row for name in names() for row in listed(name)]
    assert [row["name"] for row in rows] == names()
    assert all(set(row) == KEYS for row in rows)
    expected = {"c4": "not prepared", "duplicate": "needs no file", "enwik8": "not prepared", "stdlib": "not prepared"}
    assert states().items() >= expected.items()
    assert set(states().values()) == {"needs no file", "not prepared"}
    assert not root.exists()


def test_files_at_their_usual_place_are_there_and_not_prepared(root: Path) -> None:
    (root / "cifar10").mkdir(parents=True)
    assert states()["cifar10"] == "files there"


def test_a_prepared_one_is_ready_with_its_place_and_sum_and_verified_once_it_is_hashed() -> None:
    row = prepare(DataConfig("stdlib", 1024))
    assert row["state"] == "verified"
    assert Path(row["path"]).is_dir()
    assert row["sha256"][:12] in row["path"]
    assert verify("stdlib") == [row]
    assert states()["stdlib"] == "prepared"


def test_a_changed_byte_is_reported_and_prepared_anew() -> None:
    row = prepare(DataConfig("stdlib", 1024))
    array = Path(row["path"], "valid.bin")
    content = bytearray(array.read_bytes())
    content[1000] ^= 1
    array.write_bytes(content)
    (damaged,) = verify("stdlib")
    assert damaged["state"] == "damaged"
    assert "valid.bin" in damaged["why"]
    assert states()["stdlib"] == "prepared", "a list hashes nothing"
    array.write_bytes(content[:-1])
    assert states()["stdlib"] == "damaged"
    assert prepare(DataConfig("stdlib", 1024)) == row


def test_a_folder_without_meta_data_is_damaged_not_forgotten() -> None:
    row = prepare(DataConfig("stdlib", 1024))
    Path(row["path"], "meta.json").unlink()
    assert [found["state"] for found in verify("stdlib")] == ["damaged"]


def test_a_row_has_the_licence_of_the_data_that_was_prepared() -> None:
    prepare(C4Config("c4", 16, path="efftx:samples/c4", tokenizer="bytes"))
    (row,) = verify("c4")
    assert row["licence"] != find_source("c4").licence
    assert "efftx" in row["licence"]


def test_the_package_s_photographs_have_their_own_licence_whatever_set_reads_them() -> None:
    prepare(PicturesConfig("images", 192, path="efftx:samples/photos", side=8))
    (row,) = verify("images")
    assert row["licence"].startswith("public domain and CC0")
    assert licence_and_origin("efftx:samples/glue", "ours") == {
        "licence": "Apache-2.0, written for efftx",
        "origin": "efftx",
    }
    assert licence_and_origin("pictures", "theirs") == {"licence": "theirs", "origin": "local files"}
    assert licence_and_origin(None, "theirs")["licence"] == "theirs"


def test_what_is_generated_needs_no_file() -> None:
    assert prepare(DuplicateConfig("duplicate", 16))["state"] == "needs no file"
    assert verify("duplicate")[0]["state"] == "needs no file"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="no data set 'stdlibs'"):
        verify("stdlibs")


def test_a_vocabulary_that_was_trained_is_listed_and_verified_with_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    open_dataset(TextConfig("text", 32, path="efftx:samples/c4", tokenizer="bpe", vocab_size=270), "lm")
    (row,) = vocabularies(hashes=True)
    assert set(row) == KEYS
    assert (row["name"], row["state"]) == ("vocabulary", "verified")
    assert main(["data", "verify"]) == 0
    (file,) = (path for path in Path(row["path"]).iterdir() if path.name != "meta.json")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert [row["state"] for row in vocabularies(hashes=False)] == ["prepared"]
    capsys.readouterr()
    assert main(["data", "verify", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["data"]
    (damaged,) = (row for row in rows if row["state"] == "damaged")
    assert file.name in damaged["why"]
    assert main(["data", "verify", "text"]) == 0, "of one data set alone"

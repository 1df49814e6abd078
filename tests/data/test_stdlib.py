from __future__ import annotations

import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from efftx.data import stdlib
from efftx.data.dataset import DataConfig, open_dataset
from efftx.data.stdlib import sources
from efftx.errors import UserError


def library(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_tests_packages_and_build_files_are_left_out(tmp_path: Path) -> None:
    kept = ["abc.py", "config/b.py", "json/decoder.py", "testing.py", "unittest/mock.py"]
    left = [
        "README", "json/decoder.pyc", "test/a.py", "lib2to3/tests/a.py", "idlelib/idle_test/a.py", "site-packages/a.py",
        "dist-packages/a.py", "config-3.11-x/a.py", "_sysconfigdata__linux.py", "sitecustomize.py",
    ]  # fmt: skip
    folder = library(tmp_path, dict.fromkeys(kept + left, "pass"))
    assert [path.relative_to(folder).as_posix() for path in sources(folder)] == kept


def test_this_pythons_library_is_a_corpus() -> None:
    dataset = open_dataset(DataConfig("stdlib", 1024))
    assert dataset.variant == f"stdlib[{platform.python_version()}]"
    assert (dataset.name, dataset.unit, dataset.vocab_size) == ("stdlib", "bits/dim", 256)
    assert dataset.checksum == open_dataset(DataConfig("stdlib", 256)).checksum
    row = bytes(dataset.batch("train", 0, 0, 1).tokens_BL[0].tolist())
    assert row in b"".join(path.read_bytes() for path in sources(Path(sysconfig.get_path("stdlib"))))


def test_a_virtual_environment_has_the_library_of_its_base(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    code = "import sysconfig; print(sysconfig.get_path('stdlib'))"
    told = subprocess.run([tmp_path / "venv/bin/python", "-c", code], capture_output=True, text=True, check=True).stdout
    assert Path(told.strip()) == Path(sysconfig.get_path("stdlib"))


def test_a_python_without_its_sources_is_refused(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = library(tmp_path / "lib", {"abc.py": "pass"})
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(folder))
    with pytest.raises(UserError, match="only 4 bytes") as raised:
        open_dataset(DataConfig("stdlib", 16))
    assert raised.value.kind == "missing_file"
    assert not root.exists()


def test_a_path_that_nobody_would_read_is_refused() -> None:
    with pytest.raises(UserError, match="reads no file"):
        open_dataset(DataConfig("stdlib", 16, path="somewhere"))


def test_a_library_without_its_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = library(tmp_path / "lib", {"abc.py": "pass"})
    monkeypatch.setattr("efftx.data.stdlib.sysconfig.get_path", lambda name: str(folder))
    with pytest.raises(UserError, match="This Python has only 4 bytes of standard library sources") as error:
        stdlib.prepare_stdlib(DataConfig(name="stdlib", length=64))
    assert error.value.kind == "missing_file"

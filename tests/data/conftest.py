"""A data root of its own for every test, and a small text that stands for a published one."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from efftx.data.enwik8 import Published

TEXT = "".join(f"<page><id>{i}</id><text>W\u00fcrfel {i * i}</text></page>\n" for i in range(80)).encode()


def zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("small"), content)
    return packed.getvalue()


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data root, not made yet."""
    root = tmp_path / "root"
    monkeypatch.setenv("EFFTX_DATA", str(root))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return root


@pytest.fixture
def text() -> bytes:
    return TEXT


@pytest.fixture
def archive() -> bytes:
    return zipped(TEXT)


@pytest.fixture
def publish() -> Callable[..., Published]:
    """Publishes the small text in an archive at `base_url`/small.zip, by default at a port where nobody listens."""

    def publish(archive: bytes, base_url: str = "http://127.0.0.1:9") -> Published:
        return Published(
            name="small",
            url=f"{base_url}/small.zip",
            archive_bytes=len(archive),
            archive_sha256=hashlib.sha256(archive).hexdigest(),
            n_bytes=len(TEXT),
            sha256=hashlib.sha256(TEXT).hexdigest(),
            prefixes={size: hashlib.sha256(TEXT[:size]).hexdigest() for size in (100, 1000, 2500)},
        )

    return publish


@pytest.fixture
def small(archive: bytes, publish: Callable[..., Published]) -> Published:
    return publish(archive)


@pytest.fixture
def archive_of_a_part() -> bytes:
    return zipped(TEXT[:1500])


@pytest.fixture
def archive_of_another_text() -> bytes:
    return zipped(TEXT[::-1])

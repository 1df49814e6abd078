"""A download that goes on where it stopped and is checked before it takes its name."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from filelock import FileLock

from efftx.core.files import file_sha256, writing
from efftx.data.prepared import ELSEWHERE
from efftx.data.text_files import kind_of
from efftx.errors import UserError

TIMEOUT_SECONDS = 10
_CHUNK = 1 << 16


def download(url: str, target: Path, n_bytes: int, sha256: str, hint: str) -> Path:
    """The file at `target`, fetched from `url` unless it is there with the right SHA-256.

    What has come is kept in `target`.part; the next call asks the server (once) for the rest only. Any number of
    processes may ask at once: one downloads, the others wait. `UserError` with `hint` where there is no network, the
    server refuses, or the bytes are not the `n_bytes` expected.
    """
    with writing(target, ELSEWHERE):
        if _is_there(target, n_bytes, sha256):  # no lock: a folder that can only be read is enough
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            return target if _is_there(target, n_bytes, sha256) else _download(url, target, n_bytes, sha256, hint)


def _is_there(target: Path, n_bytes: int, sha256: str) -> bool:
    return target.is_file() and target.stat().st_size == n_bytes and file_sha256(target) == sha256


def _download(url: str, target: Path, n_bytes: int, sha256: str, hint: str) -> Path:
    part = target.with_name(target.name + ".part")
    for path in (target, part):
        if kind_of(path) not in ("file", "missing"):
            raise UserError("bad_file", f"{path} is not a file.", f"Remove it. {hint}")
    have = part.stat().st_size if part.is_file() else 0
    if have < n_bytes:
        have = _fetch(url, part, have, n_bytes, hint)
    if have < n_bytes:
        raise UserError(
            "no_network",
            f"The download of {url} stopped at {have:,} of {n_bytes:,} bytes.",
            f"The same command goes on from there. {hint}",
        )
    if have > n_bytes or file_sha256(part) != sha256:
        part.unlink()  # nothing in it can be trusted, so nothing can be resumed
        raise UserError("wrong_checksum", f"{url} did not give the expected file (SHA-256 {sha256}).", hint)
    part.replace(target)
    return target


def _fetch(url: str, part: Path, have: int, n_bytes: int, hint: str) -> int:
    """Appends what is missing to `part`, from the start if the server cannot resume; gives the size it then has."""
    request = urllib.request.Request(
        url, headers={"User-Agent": "efftx"} | ({"Range": f"bytes={have}-"} if have else {})
    )
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            raise UserError("no_network", f"{url} answers {error.code} {error.reason}.", hint) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError("no_network", f"Cannot reach {url}: {reason}.", hint) from error
    resumes = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    with closing(response), part.open("ab" if resumes else "wb") as file:
        # Append mode opens at the end, so this is the size; one byte too many is enough to know a wrong file.
        for chunk in _received(response, n_bytes + 1 - file.tell()):
            file.write(chunk)
        return file.tell()


def _received(response: http.client.HTTPResponse, at_most: int) -> Iterator[bytes]:
    """The body in pieces, as far as it comes: a broken connection ends it."""
    while at_most > 0:
        try:
            chunk = response.read(min(_CHUNK, at_most))
        except (OSError, http.client.HTTPException):
            return
        if not chunk:
            return
        at_most -= len(chunk)
        yield chunk

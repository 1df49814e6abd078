from __future__ import annotations

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from efftx.data.download import download
from efftx.errors import UserError
from tests.processes import wait_until

CONTENT = bytes(range(256)) * 800


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; `stop_after` breaks each answer off after so many bytes; `ranges` off ignores Range.

    With `hold` the end of each answer waits until that is set.
    """

    hold: threading.Event | None = None
    stop_after: int | None = None
    ranges = True
    asked: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.path != "/file":
            self.send_error(404)
            return
        start = 0
        if asked and self.server.ranges:
            found = re.fullmatch(r"bytes=(\d+)-", asked)
            assert found
            start = int(found[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        body = CONTENT[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.hold is not None:
            self.wfile.write(body[:1000])
            body = body[1000:]
            self.server.hold.wait(60)
        self.wfile.write(body[: self.server.stop_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(url: str, target: Path, content: bytes = CONTENT) -> Path:
    return download(url, target, len(content), hashlib.sha256(content).hexdigest(), "Put it there yourself.")


def test_a_download_is_the_file_and_leaves_no_part(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    assert fetch(server.url, target).read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir() if not path.name.endswith(".lock")] == ["file"]


def test_a_file_that_is_there_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "file")
    assert server.asked == []


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.stop_after = 70_000
    with pytest.raises(UserError, match=r"stopped at 70,000 of 204,800 bytes"):
        fetch(server.url, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    server.stop_after = None
    assert fetch(server.url, tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=70000-"]


def test_a_server_that_cannot_resume_is_read_from_the_start(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:5000])
    server.ranges = False
    assert fetch(server.url, tmp_path / "file").read_bytes() == CONTENT


def test_a_complete_part_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == []


@pytest.mark.parametrize("expected", [CONTENT[:-1] + b"?", CONTENT[:-5], CONTENT[:100]])
def test_another_file_than_expected_is_refused_and_not_kept(server: Server, tmp_path: Path, expected: bytes) -> None:
    with pytest.raises(UserError) as raised:
        fetch(server.url, tmp_path / "file", expected)
    assert raised.value.kind == "wrong_checksum"
    assert list(tmp_path.glob("file*")) == []


def test_a_damaged_part_does_not_stand_in_the_way_for_ever(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"?" * 5000)
    with pytest.raises(UserError, match="expected file"):
        fetch(server.url, tmp_path / "file")
    assert fetch(server.url, tmp_path / "file").read_bytes() == CONTENT


def test_a_damaged_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"?" * len(CONTENT))
    assert fetch(server.url, tmp_path / "file").read_bytes() == CONTENT


def test_no_network_is_said_with_the_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot reach") as raised:
        fetch("http://127.0.0.1:9/file", tmp_path / "file")
    assert raised.value.kind == "no_network"
    assert raised.value.hint == "Put it there yourself."
    assert list(tmp_path.glob("file*")) == []


def test_a_file_that_the_server_lacks_is_said(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="404"):
        fetch(server.url.replace("/file", "/nothing"), tmp_path / "file")
    assert len(server.asked) == 1


@pytest.mark.parametrize("suffix", ["", ".part"])
def test_a_pipe_or_a_folder_in_its_place_is_told_and_never_waited_for(tmp_path: Path, suffix: str) -> None:
    for make in (os.mkfifo, os.mkdir):
        path = tmp_path / f"{make.__name__}{suffix}"
        make(path)
        with pytest.raises(UserError, match=f"{path.name} is not a file") as raised:
            download("http://127.0.0.1:9/file", tmp_path / make.__name__, 5, "00" * 32, "Hint.")
        assert raised.value.kind == "bad_file"


def test_of_two_processes_that_want_one_file_one_downloads_it_and_the_other_waits(
    server: Server, tmp_path: Path
) -> None:
    server.hold = threading.Event()
    target, ready = tmp_path / "file", tmp_path / "ready"
    digest = hashlib.sha256(CONTENT).hexdigest()
    code = f"""if True:
        import os, pathlib
        from efftx.data.download import download
        pathlib.Path({str(ready)!r} + str(os.getpid())).touch()
        download({server.url!r}, pathlib.Path({str(target)!r}), {len(CONTENT)}, {digest!r}, "")
    """
    first = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: server.asked)
    second = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    time.sleep(0.5)  # for the request that it must not make
    server.hold.set()
    assert [first.wait(60), second.wait(60)] == [0, 0]
    assert server.asked == [None]
    assert target.read_bytes() == CONTENT

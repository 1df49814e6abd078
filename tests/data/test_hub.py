from __future__ import annotations

import http.server
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest

from efftx.data.hub import HubTexts, hub
from efftx.errors import UserError

TEXTS = HubTexts("someone/texts", "en", "abc123")
NOBODY = "http://127.0.0.1:9"


class Answers(http.server.HTTPServer):
    """Answers every HEAD with `status` and remembers what was asked for."""

    status = 200
    asked: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Answers

    def do_HEAD(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    server = Answers(("127.0.0.1", 0), Handler)
    server.asked = []
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """A `datasets` whose data set has the texts 0, 1, 2, ... without end; gives what it was asked for."""
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def load_dataset(*words: Any, **options: Any) -> Iterator[dict[str, str]]:
        asked.append((words, options))
        return ({"text": str(i)} for i in range(10**9))

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_the_documents_asked_for_are_streamed_at_one_commit(server: Answers, client: list[Any]) -> None:
    assert list(TEXTS.read("validation", 3, 4, "")) == ["3", "4", "5", "6"]
    assert client == [(("someone/texts", "en"), {"split": "validation", "revision": "abc123", "streaming": True})]
    assert server.asked == ["/datasets/someone/texts/resolve/abc123/README.md"]


def test_all_documents_come_without_a_count(server: Answers, client: list[Any]) -> None:
    texts = TEXTS.read("train", 0, None, "")
    assert [next(texts) for _ in range(3)] == ["0", "1", "2"]


def test_without_a_network_it_is_said_at_once_and_the_client_is_not_asked(
    client: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"Cannot reach http://127\.0\.0\.1:9 for data set someone/texts") as raised:
        next(TEXTS.read("train", 0, 1, "Set data.path."))
    assert time.monotonic() - started < 5
    assert (raised.value.kind, raised.value.hint) == ("no_network", "Set data.path.")
    assert client == []


def test_a_refusal_is_said_with_its_number(server: Answers, client: list[Any]) -> None:
    server.status = 503
    with pytest.raises(UserError, match="answers 503") as raised:
        next(TEXTS.read("train", 0, 1, "hint"))
    assert raised.value.kind == "no_network"
    assert client == []


def test_what_the_client_raises_later_is_the_users_to_mend(
    server: Answers, client: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*words: Any, **options: Any) -> Iterator[dict[str, str]]:
        yield {"text": "0"}
        raise ConnectionError("broken\nin many lines")

    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", breaks)
    texts = TEXTS.read("train", 0, 2, "hint")
    assert next(texts) == "0"
    with pytest.raises(UserError, match=r"someone/texts could not be read: broken\.") as raised:
        next(texts)
    assert raised.value.hint == "hint"


def test_a_mirror_may_stand_for_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub() == "https://huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert hub() == "https://mirror.example"

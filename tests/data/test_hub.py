from __future__ import annotations

import http.server
import json
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from efftx.data.hub import HubRows, hub
from efftx.errors import UserError

TEXTS = HubRows("someone/texts", "en", "abc123")
NOBODY = "http://127.0.0.1:9"


class Answers(http.server.HTTPServer):
    """Answers every request with `status` and remembers what was asked for, and with which word of passage."""

    status = 200
    asked: list[tuple[str, str | None]]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Answers

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        content = json.dumps({"id": "someone/texts", "sha": "abc123"}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def ask_at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """The Hub's address for a client that has been loaded, as HF_ENDPOINT is for one that will be."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    server = Answers(("127.0.0.1", 0), Handler)
    server.asked = []
    ask_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
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


def test_the_rows_asked_for_are_streamed_at_one_commit(
    server: Answers, client: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert [row["text"] for row in TEXTS.stream("validation", 3, 4, "")] == ["3", "4", "5", "6"]
    assert client == [(("someone/texts", "en"), {"split": "validation", "revision": "abc123", "streaming": True})]
    assert [path.partition("?")[0] for path, _ in server.asked] == ["/api/datasets/someone/texts/revision/abc123"]
    assert server.asked[0][1] == "Bearer hf_secret"


def test_all_rows_are_downloaded_into_the_clients_cache(server: Answers, client: list[Any]) -> None:
    rows = TEXTS.rows("train", "")
    assert [next(rows)["text"] for _ in range(3)] == ["0", "1", "2"]
    assert client == [(("someone/texts", "en"), {"split": "train", "revision": "abc123", "streaming": False})]


def test_without_a_network_it_is_said_at_once_and_the_client_is_not_asked(
    client: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_at(monkeypatch, NOBODY)
    started = time.monotonic()
    with pytest.raises(
        UserError, match=r"Cannot reach the Hub at http://127\.0\.0\.1:9 for .* someone/texts"
    ) as raised:
        next(TEXTS.rows("train", "Set data.path."))
    assert time.monotonic() - started < 5
    assert raised.value.kind == "no_network"
    assert raised.value.hint == "HF_HUB_OFFLINE=1 reads what was downloaded before. Set data.path."
    assert client == []


def test_offline_nothing_is_asked_for_but_the_cache(
    server: Answers, client: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled):
        huggingface_hub.HfApi().dataset_info("someone/texts")
    assert next(TEXTS.rows("train", ""))["text"] == "0"
    assert server.asked == []
    assert len(client) == 1


@pytest.mark.parametrize("commit", ["ab" * 20, "cd" * 20])
def test_another_commit_in_the_cache_is_not_taken_for_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch, commit: str
) -> None:
    class Table(list[dict[str, str]]):
        cache_files = ({"filename": f"/cache/texts/en/0.0.0/{commit}/texts-train.arrow"},)

    module = types.ModuleType("datasets")
    module.load_dataset = lambda *words, **options: Table([{"text": "0"}])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    table = HubRows("someone/texts", "en", "ab" * 20)
    if commit == table.revision:
        assert list(table.rows("train", "")) == [{"text": "0"}]
        return
    with pytest.raises(UserError, match="at another commit than ababab") as raised:
        next(table.rows("train", ""))
    assert raised.value.kind == "no_network"


def test_a_refusal_is_said_with_its_number(server: Answers, client: list[Any]) -> None:
    server.status = 503
    with pytest.raises(UserError, match="503") as raised:
        next(TEXTS.rows("train", "hint"))
    assert raised.value.kind == "no_network"
    assert client == []


def test_what_the_client_raises_later_is_the_users_to_mend(
    server: Answers, client: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*words: Any, **options: Any) -> Iterator[dict[str, str]]:
        yield {"text": "0"}
        raise ConnectionError("broken\nin many lines")

    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", breaks)
    rows = TEXTS.stream("train", 0, 2, "hint")
    assert next(rows) == {"text": "0"}
    with pytest.raises(UserError, match=r"someone/texts could not be read: broken\.") as raised:
        next(rows)
    assert raised.value.hint == "hint"


@pytest.mark.parametrize("streaming", [True, False])
def test_the_client_itself_gives_the_rows_of_a_folder_in_the_hubs_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """What `datasets` gives of a data set on the Hub, it gives of the same files in a folder."""
    monkeypatch.setattr(HubRows, "_check_reachable", lambda self, hint: None)  # a folder is not on the Hub
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rte").mkdir()
    for split, count in {"train": 5, "validation": 2}.items():
        rows = [{"sentence": f"{split} {i}", "label": i % 2} for i in range(count)]
        name = f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rte" / name)
    files = "".join(f"  - {{split: {split}, path: rte/{split}-*}}\n" for split in ("train", "validation"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: rte\n  data_files:\n{files}---\n")
    table = HubRows(str(tmp_path), "rte", "main")
    found = table.stream("train", 1, 2, "") if streaming else table.rows("validation", "")
    texts = ["train 1", "train 2"] if streaming else ["validation 0", "validation 1"]
    assert [row["sentence"] for row in found] == texts
    with pytest.raises(UserError, match="could not be read"):
        next(table.rows("test", ""))


def test_a_mirror_may_stand_for_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub() == "https://huggingface.co"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert hub() == "https://mirror.example"

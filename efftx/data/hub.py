"""Rows of a data set on the Hugging Face Hub, through `datasets` and `huggingface_hub`.

These read HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE; nothing of that is read here. What was downloaded before
is found offline too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import huggingface_hub
import huggingface_hub.constants
from huggingface_hub.errors import OfflineModeIsEnabled

from efftx.errors import UserError

TIMEOUT_SECONDS = 10
_COMMIT = re.compile(r"(?<=[/\\])[0-9a-f]{40}(?=[/\\])")


def hub() -> str:
    """The address of the Hub, or of the mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE says that nothing is to be asked for."""
    return bool(huggingface_hub.constants.HF_HUB_OFFLINE)


@dataclass(frozen=True)
class HubRows:
    """A data set on the Hub at one commit, so that it is the same for everyone."""

    place: str
    subset: str
    revision: str

    @property
    def origin(self) -> str:
        """What a record says of where the rows are from."""
        return f"{self.place} {self.subset} at {self.revision[:7]} on the Hub"

    def stream(self, split: str, start: int, count: int | None, hint: str) -> Iterator[dict[str, Any]]:
        """`count` rows (None: all) of a split from number `start` on, without downloading the whole of it.

        `UserError` as `rows`.
        """
        return islice(self._rows(split, hint, streaming=True), start, None if count is None else start + count)

    def rows(self, split: str, hint: str, *, undecoded: str | None = None) -> Iterator[dict[str, Any]]:
        """All rows of a split, downloaded once into the cache of `datasets`.

        Of the pictures in column `undecoded` the files' bytes are given, {"bytes": ...}, which `datasets` else decodes.
        `UserError` with `hint` where the Hub cannot be reached, refuses, or is not to be asked and the cache has none.
        """
        return self._rows(split, hint, streaming=False, undecoded=undecoded)

    def _rows(
        self, split: str, hint: str, *, streaming: bool, undecoded: str | None = None
    ) -> Iterator[dict[str, Any]]:
        self._check_reachable(hint)
        try:
            import datasets  # takes seconds

            rows: Any = datasets.load_dataset(
                self.place, self.subset, split=split, revision=self.revision, streaming=streaming
            )
            self._check_cached(rows, hint)
            if undecoded is not None:
                rows = rows.cast_column(undecoded, datasets.Image(decode=False))
            yield from rows
        except UserError:
            raise
        except Exception as error:  # of any of the four libraries that the client is made of
            message = f"The Hub's data set {self.place} could not be read: {_first_line(error)}."
            raise UserError("no_network", message, hint) from error

    def _check_cached(self, rows: Any, hint: str) -> None:
        """Without the Hub the client gives whatever commit it downloaded last, in a folder named by that commit."""
        for file in (str(file["filename"]) for file in getattr(rows, "cache_files", ())):
            commits = _COMMIT.findall(file)
            if commits and self.revision not in commits:
                message = f"The cache holds {self.place} at another commit than {self.revision[:7]}: {file}."
                raise UserError("no_network", message, f"Read it once with a network, without HF_HUB_OFFLINE. {hint}")

    def _check_reachable(self, hint: str) -> None:
        """Asks the Hub once for the data set: without a network `load_dataset` alone tries for half a minute."""
        try:
            huggingface_hub.HfApi().dataset_info(self.place, revision=self.revision, timeout=TIMEOUT_SECONDS)
        except OfflineModeIsEnabled:
            pass  # the cache may have it
        except Exception as error:  # of the client or of the library under it
            message = f"Cannot reach the Hub at {hub()} for data set {self.place}: {_first_line(error)}."
            hint = f"HF_HUB_OFFLINE=1 reads what was downloaded before. {hint}"
            raise UserError("no_network", message, hint) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__

"""Documents of a data set on the Hugging Face Hub, one after another."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from efftx.errors import UserError

TIMEOUT_SECONDS = 5


def hub() -> str:
    """The address of the Hub, or of the mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@dataclass(frozen=True)
class HubTexts:
    """A data set on the Hub at one commit, so that it is the same for everyone."""

    place: str
    subset: str
    revision: str

    def read(self, split: str, start: int, count: int | None, hint: str) -> Iterator[str]:
        """The texts of `count` documents (None: all) of a split from number `start` on, streamed.

        `UserError` with `hint` where the Hub cannot be reached: it is asked once, within TIMEOUT_SECONDS, while its own
        client would try for half a minute.
        """
        address = f"{hub()}/datasets/{self.place}/resolve/{self.revision}/README.md"
        try:
            request = urllib.request.Request(address, headers={"User-Agent": "efftx"}, method="HEAD")
            urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()
        except urllib.error.HTTPError as error:
            with error:
                message = f"{address} answers {error.code} {error.reason}."
                raise UserError("no_network", message, hint) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            message = f"Cannot reach {hub()} for data set {self.place}: {reason}."
            raise UserError("no_network", message, hint) from error
        try:
            from datasets import load_dataset  # takes seconds to import

            rows = load_dataset(self.place, self.subset, split=split, revision=self.revision, streaming=True)
            for row in islice(rows, start, None if count is None else start + count):
                yield row["text"]
        except Exception as error:  # of any of the four libraries that the client is made of
            reason = str(error).partition("\n")[0] or type(error).__name__
            message = f"The Hub's data set {self.place} could not be read: {reason}."
            raise UserError("no_network", message, hint) from error

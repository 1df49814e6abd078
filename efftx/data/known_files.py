"""Which files hold a published data set or a part of it: a record gives its name to these and to no others.

A file's name says nothing of what is in it, so that the bytes decide. All other files are the user's own: the variant
names them and their checksum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

KNOWN = {
    "c4": (
        "adecc5d1522ac57206abef2de82b4f7e81bf97f45e56a22dc3c2fab28feca947",  # train.jsonl.gz, 3,210 documents
        "e0c57f75d2c76c920dfbc470207c628ef02f092cbde3fb0262d358854149aab2",  # valid.jsonl.gz, 40
        "d3bf5083d5458de482e75891dde253b82228dd521c9cce2d7477d333afb2b70c",  # test.jsonl.gz, 30
    ),
    "glue cola": (
        "a1208d9681949aa1869ae83503ba7cc147337c4a7e5e1c4d256215655c2b467f",  # in_domain_train.tsv.gz
        "99a1b086187c607d71571f4e539fdcfe6b69ef2fe91e80fda839bd6fdd6ef2e0",  # in_domain_dev.tsv.gz
        "bc1b7c0853adf3a5abe533b7b79fefe983de33e9849fd148a365e36d92ea2ccf",  # out_of_domain_dev.tsv.gz
    ),
    "glue mrpc": (
        "c8814175933274f31fac743ac9ebe8f4eccc08dade3be4233c1ccab3e7680fec",  # train.tsv.gz
        "4085ec8f4f356bcc9b4cbf615a57aeff7da48c0c0adafbe6c114f896dfccec98",  # test.tsv.gz
    ),
    "glue rte": (
        "5a9139f3c46c300cae131a8f8d3d668f5d8e63a5247e739c57ab3ccc2eee9316",  # train.tsv.gz, a labelled re-split
        "ae5619fccf134530c93a57757397724fc7cd43aa3cd201c42e07e2cde814fd24",  # dev.tsv.gz
        "87281e27065e3939a663dc0b2bf8f63fb1ed6e04e37425e237bf728b3c39dd04",  # test.tsv.gz
    ),
    "glue sst2": (
        "6bd7ceeeb9eac01b55c854be40e71bdf4c54849638217b8b4fc2408bf17843af",  # train.tsv.gz
        "190402b0a0144b832cd9bd994dc693cff2f6aee24c22a5437938fc3564d51d33",  # dev.tsv.gz
        "e33b978bf9561af553946a8e7f30f945c46ca74a0c1e44c7b5a4cfc17ce22db3",  # test.tsv.gz
    ),
    "summarization scitldr": (
        "6290baa461c77f9d095e9d35db9672e07e78481fd33f79d9a10c0aed52a0c3af",  # scitldr_a_train.jsonl.gz
        "5cf0c79054069981bf344a1df1563124563a2de64f5d975f95c22c2034449b0d",  # scitldr_a_valid.jsonl.gz
        "b4039d5de552c4e666ffecd4d1e48f5236b81b6a2ad0b3fb1784c6fd06df7834",  # scitldr_a_test.jsonl.gz
    ),
    "summarization cnn_dailymail": (
        "2deeecc3316aad93f662053449ed860bd186e9e88b2f5a08b740b5470af25493",  # cnn_dailymail_test.jsonl.gz, 200 articles
    ),
}
"""What files hold -> SHA-256 of each as it lies on the disk."""

_SHOWN = 3


def are(what: str, sums: Sequence[str]) -> bool:
    """Whether files with these SHA-256 sums hold `what` or a part of it."""
    return set(sums) <= set(KNOWN.get(what, ()))


def own_files(files: Sequence[Path], sums: Sequence[str]) -> str:
    """What a variant calls a user's own files: their names and 12 digits over the SHA-256 sums of their bytes."""
    names = ["".join(c if c.isprintable() else "?" for c in file.name) for file in files]
    called = "+".join(names) if len(names) <= _SHOWN else f"{names[0]}+...+{names[-1]} ({len(names)} files)"
    digest = sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
    return f"{called} sha256:{digest[:12]}"


def not_known(path: str | None, what: str) -> str:
    """The note for files that are read for `what` and are not known to be that."""
    where = "What lies at its usual place" if path is None else f"data.path={path}"
    return f"{where} is not known to be {what}: a record calls it by its files' names and checksum."

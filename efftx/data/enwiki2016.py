"""206 pages of the English Wikipedia of 2016 in the format of enwik8: further training text for it, never evaluated on.

They are a test file of gensim and come inside its wheel. Their pages are the first of a dump, as enwik8's are, ten
years later: a page that stands in valid or test of the text that they are added to is left out.
"""

from __future__ import annotations

import bz2
import hashlib
import re
import zipfile
from pathlib import Path

from efftx.data.download import download
from efftx.data.prepared import data_root
from efftx.data.text_files import find_files, holds_splits, kind_of, read_text
from efftx.errors import UserError

NAME = "enwiki2016"
LICENCE = "Wikipedia text: CC BY-SA 3.0; gensim, which ships it: LGPL-2.1-only"
URL = (
    "https://files.pythonhosted.org/packages/d9/fa/85531b39c1beb5a4203929ba83d94d886cec40d0fb0bef8ca05fd1cc7a38/"
    "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl"
)
WHEEL_BYTES = 27_809_988
WHEEL_SHA256 = "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8"
MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
N_BYTES = 6_089_746
SHA256 = "34c1c63050c87cc8477b9ae36b1cb0edf372612c92938b742e579a7109c20fa4"
BLOCK = 100
"""Bytes of the blocks into which valid and test are cut; whatever 2 BLOCK - 1 bytes stand in both holds one whole."""

_PAGE = re.compile(rb"(?=  <page>\n)")
_TITLE = re.compile(rb"<title>(.*?)</title>")


def read_enwiki2016() -> bytes:
    """The text from `<data root>/enwiki2016` (its .bz2, plain, or a folder of train, valid and test), else downloaded.

    `UserError` (`wrong_checksum`) for any other text there, and for no network.
    """
    place = usual_place()
    hint = f"Put gensim's {MEMBER.rpartition('/')[2]} at {place}, or leave data.extra out."
    if kind_of(place) == "missing":
        wheel = download(URL, data_root() / "downloads" / URL.rpartition("/")[2], WHEEL_BYTES, WHEEL_SHA256, hint)
        with zipfile.ZipFile(wheel) as archive:
            text = bz2.decompress(archive.read(MEMBER))
    else:
        file = place if holds_splits(str(place)) else find_files(str(place), hint)[0]
        text = read_text(file, N_BYTES).content
    if hashlib.sha256(text).hexdigest() != SHA256:
        raise UserError("wrong_checksum", f"{place} does not hold the {N_BYTES:,} bytes of {NAME} ({SHA256}).", hint)
    return text


def usual_place() -> Path:
    """Where a user without a network can put the text."""
    return data_root() / NAME


def without_pages_of(text: bytes, held_out: bytes) -> tuple[bytes, int]:
    """`text` without the pages that share a title or a block of BLOCK bytes with `held_out`, and their number."""
    titles = set(_TITLE.findall(held_out))
    blocks = {held_out[i : i + BLOCK] for i in range(0, len(held_out) - BLOCK + 1, BLOCK)}

    def stands_in_it(page: bytes) -> bool:
        title = _TITLE.search(page)
        if title is not None and title.group(1) in titles:
            return True
        return any(page[i : i + BLOCK] in blocks for i in range(len(page) - BLOCK + 1))

    pages = _PAGE.split(text)
    kept = [page for page in pages if not stands_in_it(page)]
    return b"".join(kept), len(pages) - len(kept)

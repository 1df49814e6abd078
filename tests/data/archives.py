"""Archives that cannot be read: encrypted, and damaged inside their compression."""

from __future__ import annotations

import io
import zipfile


def as_encrypted(archive: bytes) -> bytes:
    """The same .zip with every member marked as encrypted."""
    marked = bytearray(archive)
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := marked.find(magic, place + 1)) >= 0:
            marked[place + at] |= 1
    return bytes(marked)


def as_damaged_lzma(archive: bytes) -> bytes:
    """The members of a .zip compressed by LZMA, the last of them damaged where its properties stand."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        last = new.infolist()[-1]
    damaged = bytearray(packed.getvalue())
    start = last.header_offset + 30 + len(last.filename.encode())
    damaged[start + 4] = 0xFF  # after the version and the size of the properties
    return bytes(damaged)

"""Files of several compressed streams, read to their end."""

from __future__ import annotations

import bz2
import io
import lzma
from collections.abc import Callable
from typing import IO, Any

_BLOCK = 1 << 16


class Streams(io.RawIOBase):
    """What the streams of an .xz or .bz2 file hold, one after another, zero bytes between them left out.

    Python's own readers take what follows a stream for no part of the file where it does not begin like one: the rest
    of a file with a damaged header would be missing, unseen. Here that is the decompressor's own error (LZMAError or
    OSError), and a file that ends within a stream an EOFError.
    """

    def __init__(self, file: IO[bytes], decompressor: Callable[[], Any]) -> None:
        self._file, self._new = file, decompressor
        self._stream = decompressor()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` as far as the next block goes; the number of bytes, 0 at the end of the last stream."""
        while True:
            packed = b""
            if self._stream.eof:
                packed = self._stream.unused_data.lstrip(b"\0")
                while not packed and (block := self._file.read(_BLOCK)):
                    packed = block.lstrip(b"\0")
                if not packed:
                    return 0
                self._stream = self._new()
            elif self._stream.needs_input and not (packed := self._file.read(_BLOCK)):
                raise EOFError("it ends within a compressed stream")
            if content := self._stream.decompress(packed, len(buffer)):
                buffer[: len(content)] = content
                return len(content)


def open_xz(file: IO[bytes]) -> io.BufferedReader:
    """The content of an .xz file."""
    return io.BufferedReader(Streams(file, lzma.LZMADecompressor))


def open_bz2(file: IO[bytes]) -> io.BufferedReader:
    """The content of a .bz2 file."""
    return io.BufferedReader(Streams(file, bz2.BZ2Decompressor))

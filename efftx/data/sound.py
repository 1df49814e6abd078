"""Sound as bytes: mu-law codes of 8 bits (Sparse Transformers, table 4), recordings in files, WAV files of codes.

Shape suffixes: N samples of a recording.
"""

from __future__ import annotations

import io
import math
import wave
import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from efftx.data.arrays import DAMAGED_ARCHIVE, names_of_arrays, read_array
from efftx.data.text_files import local_path, open_regular
from efftx.errors import UserError

HINT = (
    "Set data.path to a recording (.wav, .flac, .ogg, .mp3), to an .npz of mu-law codes (uint8), to a folder of such "
    "files or to a pattern such as 'music/*.flac'."
)
_MU = 255
_ZERO_CROSSINGS = 32
_KAISER_BETA = 8.6
_MOST_GIVEN = 1 << 22
_BLOCK = 1 << 20


def mu_law(wave_N: np.ndarray) -> np.ndarray:
    """Codes 0 .. 255 (uint8) of values from -1 to 1, 256 equal steps of sign(x) ln(1 + 255 |x|) / ln 256."""
    compressed_N = np.sign(wave_N) * np.log1p(_MU * np.abs(wave_N)) / math.log1p(_MU)
    return np.clip(np.floor((compressed_N + 1) * 128), 0, 255).astype(np.uint8)


def mu_law_inverse(codes_N: np.ndarray) -> np.ndarray:
    """The value in the middle of each code's step, float64 from -1 to 1."""
    compressed_N = (codes_N.astype(np.float64) + 0.5) / 128 - 1
    return np.sign(compressed_N) * np.expm1(np.abs(compressed_N) * math.log1p(_MU)) / _MU


def resampled(wave_N: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """The same sound at another rate: ideal interpolation below both rates' limits, within a Kaiser window."""
    if rate == new_rate:
        return wave_N
    up, down = new_rate // math.gcd(rate, new_rate), rate // math.gcd(rate, new_rate)
    share = min(1.0, up / down)
    half = math.ceil(_ZERO_CROSSINGS / share)
    n_out = -(-len(wave_N) * up // down)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(wave_N.astype(np.float64), half), 2 * half)
    out_N = np.empty(n_out)
    for phase in range(min(up, n_out)):  # outputs that lie alike between the samples that were
        first, between = divmod(phase * down, up)
        distance = np.arange(1 - half, half + 1) - between / up
        taps = np.sinc(share * distance) * np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (distance / half) ** 2, 0, None)))
        count = -(-(n_out - phase) // up)
        out_N[phase::up] = windows[first + 1 :: down][:count] @ (taps / taps.sum())
    return out_N


def read_recordings(path: Path, rate: int) -> Iterator[np.ndarray]:
    """The recordings of a file as mu-law codes (N,) uint8 at `rate` a second; of several channels their mean.

    An .npz has codes at that rate already, an array a recording. `UserError` for what is no sound, is damaged, or has
    no sample, and where the package that reads sound is not installed.
    """
    with open_regular(path, HINT) as file:
        recordings = _codes(file, path) if path.suffix.lower() == ".npz" else iter([mu_law(_decoded(file, path, rate))])
        for codes_N in recordings:
            if not len(codes_N):
                raise UserError("bad_sound", f"{path} holds no sound: it has no samples.", "Take it out of the folder.")
            yield codes_N


def _codes(file: IO[bytes], path: Path) -> Iterator[np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            names = names_of_arrays(archive)
            if not names:
                raise UserError("bad_sound", f"{path} holds no array of mu-law codes.", "Save uint8 [samples].")
            for name in names:
                place = f"{path}, {name}.npy"
                codes_N = read_array(archive, name, place)
                if codes_N.dtype != np.uint8 or codes_N.ndim != 1:
                    message = f"{place} is an array {list(codes_N.shape)} of {codes_N.dtype}, not mu-law codes."
                    raise UserError("bad_sound", message, "Save uint8 [samples].")
                yield codes_N
    except DAMAGED_ARCHIVE as error:
        raise UserError("damaged_file", f"{path} is damaged or truncated: {error}.", "Get the file again.") from error


def _decoded(file: IO[bytes], path: Path, rate: int) -> np.ndarray:
    try:
        import soundfile
    except ImportError as error:
        message = f"Reading {path} needs the package soundfile."
        raise UserError(
            "missing_package", message, "pip install 'efftx[audio]'; an .npz of codes needs none."
        ) from error
    try:
        with soundfile.SoundFile(file) as sound:
            blocks = [block.mean(1) for block in sound.blocks(_BLOCK, dtype="float64", always_2d=True)]
            source_rate = int(sound.samplerate)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        # Its words begin with the object that it was given: `Error opening <_io.BufferedReader ...>: `.
        why = str(error).partition("\n")[0].rpartition(">: ")[2].rstrip(".")
        raise UserError("bad_sound", f"{path} is no sound that can be read: {why}.", HINT) from error
    wave_N = np.concatenate(blocks) if blocks else np.empty(0)
    if not np.isfinite(wave_N).all():
        raise UserError("bad_sound", f"{path} holds a NaN or an infinity.", "Write it again, as 16 bits a sample.")
    return resampled(wave_N, source_rate, rate)


def wav_of(codes_N: np.ndarray, rate: int) -> bytes:
    """A WAV file of one channel and 16 bits a sample."""
    packed = io.BytesIO()
    with wave.open(packed, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(mu_law_inverse(codes_N) * 0x7FFF).astype("<i2").tobytes())
    return packed.getvalue()


class Sound:
    """Tokens as mu-law codes of a sound with `rate` samples a second."""

    kind = "sound"
    eos: int | None = None
    ends_inputs = False
    form = "the path of a recording"

    def __init__(self, rate: int) -> None:
        self.rate = rate

    def encode(self, given: str) -> list[int]:
        """The codes of the recording at a path; `UserError` as `read_recordings`."""
        codes_N = next(read_recordings(local_path(given), self.rate))
        return list(islice(map(int, codes_N), _MOST_GIVEN))

    def decode(self, ids: Sequence[int]) -> str:
        """The codes as numbers."""
        return " ".join(map(str, ids))

    def files(self, rows: Sequence[Sequence[int]]) -> list[tuple[str, bytes]]:
        """A WAV file a row, numbered where there are several."""
        several = len(rows) > 1
        return [
            (f"-{number}.wav" if several else ".wav", wav_of(np.array(row, np.uint8), self.rate))
            for number, row in enumerate(rows, 1)
        ]

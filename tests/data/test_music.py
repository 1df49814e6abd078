"""Recordings become mu-law codes at one rate, whatever they come in, and codes become sound again."""

from __future__ import annotations

import builtins
import io
import json
import math
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from efftx.cli import main
from efftx.data.dataset import find_source, notes_of, open_dataset
from efftx.data.music import MusicConfig, plucked
from efftx.data.sound import mu_law, mu_law_inverse, read_recordings, resampled
from efftx.data.windows import LanguageModelRows
from efftx.errors import UserError
from tests.data.archives import as_damaged_lzma, as_encrypted


def config(path: Path | None, length: int = 16, rate: int = 12_000) -> MusicConfig:
    return MusicConfig("music", length, str(path) if path else None, rate=rate)


def codes_of(path: Path, split: str, rate: int = 12_000) -> np.ndarray:
    dataset = open_dataset(config(path, rate=rate))
    assert isinstance(dataset, LanguageModelRows)
    return np.asarray(dataset._windows.corpus.arrays[split])


def tone(rate: int, seconds: float = 0.25, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * math.pi * hertz * np.arange(int(rate * seconds)) / rate)


def test_codes_are_256_equal_steps_of_the_compressed_wave() -> None:
    """By hand: silence lies at the border of the two middle codes, and 1 at the end of the last."""
    assert mu_law(np.array([-1.0, 0.0, 1.0])).tolist() == [0, 128, 255]
    half = math.log(1 + 255 * 0.5) / math.log(256)
    assert mu_law(np.array([0.5, -0.5])).tolist() == [math.floor(128 + 128 * half), math.floor(128 - 128 * half)]
    assert mu_law(np.array([3.0, -3.0])).tolist() == [255, 0]
    first = (256 ** (0.5 / 128) - 1) / 255
    assert mu_law_inverse(np.array([128, 127])) == pytest.approx([first, -first])


@given(st.integers(0, 255))
def test_a_code_comes_back_from_its_value(code: int) -> None:
    assert mu_law(mu_law_inverse(np.array([code]))).tolist() == [code]


@pytest.mark.parametrize(("rate", "new_rate"), [(44_100, 12_000), (48_000, 12_000), (8_000, 12_000), (11_025, 12_000)])
def test_a_tone_is_the_same_tone_at_another_rate(rate: int, new_rate: int) -> None:
    found = resampled(tone(rate), rate, new_rate)
    expected = tone(new_rate)
    assert abs(len(found) - len(expected)) <= 1
    inside = slice(100, min(len(found), len(expected)) - 100)  # at the ends the tone begins out of nothing
    assert np.abs(found[inside] - expected[inside]).max() < 1e-3


def test_what_the_new_rate_cannot_hold_is_gone_and_the_same_rate_changes_nothing() -> None:
    high = resampled(tone(48_000, hertz=9_000.0), 48_000, 12_000)
    assert np.abs(high[100:-100]).max() < 1e-3
    wave_N = tone(12_000)
    assert resampled(wave_N, 12_000, 12_000) is wave_N


@given(st.integers(1, 300), st.sampled_from([(3, 2), (2, 3), (147, 40), (1, 7), (5, 1)]))
@settings(max_examples=40)
def test_each_sample_is_the_windowed_sum_that_defines_it(n: int, rates: tuple[int, int]) -> None:
    rate, new_rate = rates
    wave_N = np.random.RandomState(n).uniform(-1, 1, n)
    found = resampled(wave_N, rate, new_rate)
    assert len(found) == math.ceil(n * new_rate / rate)
    share = min(1.0, new_rate / rate)
    half = math.ceil(32 / share)
    for k in {0, len(found) // 2, len(found) - 1}:
        at = k * rate / new_rate
        j = np.arange(math.floor(at) - half + 1, math.floor(at) + half + 1)
        taps = np.sinc(share * (j - at)) * np.i0(8.6 * np.sqrt(np.clip(1 - ((j - at) / half) ** 2, 0, None)))
        values = np.where((j >= 0) & (j < n), wave_N[np.clip(j, 0, n - 1)], 0.0)
        assert found[k] == pytest.approx(values @ taps / taps.sum(), abs=1e-9)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_a_recording_is_read_in_every_usual_form(kind: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / f"a.{kind}", np.stack([tone(24_000), np.zeros(6_000)], 1), 24_000)
    (codes,) = read_recordings(tmp_path / f"a.{kind}", 12_000)
    expected = tone(12_000) / 2  # the mean of the channels
    tolerance = 0.1 if kind == "ogg" else 0.02  # a loud code's step is 0.02 wide, and ogg loses something itself
    assert np.abs(mu_law_inverse(codes)[100:-100] - expected[100 : len(codes) - 100]).max() < tolerance


def test_recordings_are_split_in_time_unless_their_names_say_how(tmp_path: Path) -> None:
    first, second = (np.random.RandomState(i).randint(0, 256, 400 + 200 * i).astype(np.uint8) for i in range(2))
    np.savez(tmp_path / "a.npz", one=first, two=second)
    assert (codes_of(tmp_path / "a.npz", "train") == [*first[:360], *second[:540]]).all()
    assert (codes_of(tmp_path / "a.npz", "valid") == [*first[360:380], *second[540:570]]).all()
    assert (codes_of(tmp_path / "a.npz", "test") == [*first[380:], *second[570:]]).all()
    variant = open_dataset(config(tmp_path / "a.npz")).variant
    assert variant.startswith("music[a.npz sha256:")
    assert variant.endswith(" 2 recordings, 0.1+0.0+0.0 s at 12000 Hz, 90/5/5 of each recording]")
    folder = tmp_path / "named"
    folder.mkdir()
    for split, codes in (("train", first), ("valid", second[:100]), ("test", second[100:])):
        np.savez(folder / f"{split}.npz", codes)
    assert (codes_of(folder, "train") == first).all()
    assert (codes_of(folder, "test") == second[100:]).all()
    assert open_dataset(config(folder)).variant.endswith(" s at 12000 Hz]")


def test_without_recordings_strings_are_plucked_the_same_ones_everywhere() -> None:
    dataset = open_dataset(config(None, length=1024))
    assert dataset.variant == "music[plucked strings at 12000 Hz]"
    assert dataset.checksum == "f8ba75647a25517f29a6f3d8268832c289c7e456f70a52a1129795b9fa5d21d1"
    assert "plucked by rule" in notes_of(dataset)[0]
    assert (dataset.vocab_size, dataset.unit) == (256, "bits/dim")
    notes = plucked("test", 5, 12_000)
    assert 1_000 < np.abs(notes).max() < 0x7FFF
    assert (notes[:1000] != plucked("valid", 5, 12_000)[:1000]).any()
    # A string's loudest frequency is that of its period, which is one of the scale.
    strength = np.abs(np.fft.rfft(notes[:1500]))[5:]
    loudest = (5 + int(strength.argmax())) * 12_000 / 1_500
    scale = [110 * 2 ** (octave + step / 12) for octave in range(4) for step in (0, 3, 5, 7, 10)]
    assert min(abs(loudest - hertz * over) for hertz in scale for over in (1, 2, 3)) < 12


def zeros(folder: Path) -> None:
    soundfile.write(folder / "a.wav", np.zeros(0), 12_000)


def no_sound(folder: Path) -> None:
    (folder / "a.wav").write_bytes(b"words")


def cut_short(folder: Path) -> None:
    soundfile.write(folder / "a.flac", tone(12_000), 12_000)
    (folder / "a.flac").write_bytes((folder / "a.flac").read_bytes()[:30])


def not_a_number(folder: Path) -> None:
    soundfile.write(folder / "a.wav", np.full(100, np.nan), 12_000, "FLOAT")


def objects(folder: Path) -> None:
    np.savez(folder / "a.npz", np.array([{}], dtype=object))


def no_codes(folder: Path) -> None:
    np.savez(folder / "a.npz", np.ones((3, 3)))


def empty_codes(folder: Path) -> None:
    np.savez(folder / "a.npz", np.empty(0, np.uint8))


def other_members(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "words")


def encrypted(folder: Path) -> None:
    np.savez(folder / "a.npz", a=np.ones(40, np.uint8))
    (folder / "a.npz").write_bytes(as_encrypted((folder / "a.npz").read_bytes()))


def damaged_lzma(folder: Path) -> None:
    np.savez(folder / "b.npz", a=np.ones(40, np.uint8))
    (folder / "a.npz").write_bytes(as_damaged_lzma((folder / "b.npz").read_bytes()))
    (folder / "b.npz").unlink()


def no_files(folder: Path) -> None:
    (folder / "a.txt").write_text("words")


def too_short(folder: Path) -> None:
    np.savez(folder / "a.npz", np.zeros(100, np.uint8))


BAD: list[tuple[Callable[[Path], None], str]] = [
    (zeros, "holds no sound: it has no samples"),
    (no_sound, "is no sound that can be read: Format not recognised."),
    (cut_short, "is no sound that can be read"),
    (not_a_number, "holds a NaN or an infinity"),
    (objects, "never unpickled"),
    (no_codes, "not mu-law codes"),
    (other_members, "holds no array of mu-law codes"),
    (encrypted, "damaged or truncated: File 'a.npy' is encrypted"),
    (damaged_lzma, "damaged or truncated"),
    (empty_codes, "holds no sound: it has no samples"),
    (no_files, "holds no file of sound"),
]


@pytest.mark.parametrize(("make", "says"), BAD, ids=[make.__name__ for make, _ in BAD])
def test_what_is_no_sound_is_one_message_and_exit_code_2(
    make: Callable[[Path], None], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path)
    assert main(["data", "prepare", "music", f"data.path={tmp_path}", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert says in error["message"]
    assert error["hint"]


def test_an_npz_is_known_whatever_the_case_of_its_ending_and_what_macos_adds_is_no_recording(tmp_path: Path) -> None:
    codes = np.random.RandomState(0).randint(0, 256, 400).astype(np.uint8)
    np.savez(tmp_path / "a.npz", codes)
    (tmp_path / "a.npz").rename(tmp_path / "a.NPZ")
    with zipfile.ZipFile(tmp_path / "a.NPZ", "a") as archive:
        archive.writestr("__MACOSX/._arr_0.npy", "words")
    assert (codes_of(tmp_path, "test") == codes[380:]).all()


def test_a_recording_shorter_than_a_row_says_how_long_a_row_can_be(tmp_path: Path) -> None:
    too_short(tmp_path)
    with pytest.raises(UserError, match=r"longer than the valid split of music\[.*\(5 samples\)"):
        open_dataset(config(tmp_path))


def test_a_recording_in_two_formats_is_read_once_and_the_better_one(tmp_path: Path) -> None:
    for name in ("a.ogg", "a.wav", "b.flac", "b.wav"):
        soundfile.write(tmp_path / name, tone(12_000), 12_000)
    dataset = open_dataset(config(tmp_path))
    assert dataset.variant.startswith("music[a.wav+b.flac sha256:")
    assert notes_of(dataset) == ("Left out: a.ogg, b.wav, other forms of files that are read.",)


def test_without_the_package_that_reads_sound_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", tone(12_000), 12_000)
    real = builtins.__import__

    def without(name: str, *words: Any) -> Any:
        if name == "soundfile":
            raise ImportError(name)
        return real(name, *words)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="needs the package soundfile") as told:
        list(read_recordings(tmp_path / "a.wav", 12_000))
    assert "efftx[audio]" in told.value.hint


def test_a_rendering_writes_a_wav_file_a_row_that_reads_as_the_same_codes(tmp_path: Path) -> None:
    how = find_source("music").rendering(config(None))
    assert how.kind == "sound"
    rows = [np.random.RandomState(i).randint(0, 256, 500).tolist() for i in range(2)]
    files = how.files(rows)
    assert [ending for ending, _ in files] == ["-1.wav", "-2.wav"]
    assert files == how.files(rows)
    ((ending, content),) = how.files(rows[:1])
    assert (ending, content) == (".wav", files[0][1])
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 12_000, 500)
    (tmp_path / "a.wav").write_bytes(content)
    back = np.array(how.encode(str(tmp_path / "a.wav")))
    assert np.abs(back - np.array(rows[0])).max() <= 1  # 16 bits hold the smallest steps only nearly


def test_real_recordings_are_the_codes_that_they_are(samples: Path) -> None:
    path = samples / "data" / "piano" / "piano_12khz_mulaw.npz"
    codes = np.load(path)["cut_liszt"]
    assert (codes_of(path, "train")[:432_000] == codes[:432_000]).all()
    assert "2 recordings, 54.0+3.0+3.0 s at 12000 Hz" in open_dataset(config(path)).variant

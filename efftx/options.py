"""The words behind a command, plain ones and `key=value` options, read here for all commands: `lengths=1024,4096 n=3`.

The keys of a configuration are Hydra's to read, and `efftx.config`'s.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from efftx.config.values import MOST_SEED, Range
from efftx.core.device_names import read_device
from efftx.errors import UserError, nearest

COUNT = Range(1, 2**31 - 1)
LENGTH = Range(1, 2**24)
"""Tokens in a row of a measurement."""
REPEATS = Range(1, 10**6)
SEED = Range(0, MOST_SEED)


def whole(key: str, word: str, allowed: Range = COUNT, hint: str = "") -> int:
    """A whole number in the range `allowed`; UserError for anything else."""
    if not re.fullmatch(r"[+-]?[0-9]+", word, re.ASCII):
        raise UserError("bad_type", f"{key}={_short(word)} is not a whole number.", hint)
    # Python reads no number of thousands of digits; one of forty is as far out of every range.
    number = int(word[:40])
    if why := allowed.why_not(number):
        raise UserError("bad_value", f"{key}={_short(word)} {why}.", hint)
    return number


def wholes(key: str, text: str, allowed: Range = COUNT, hint: str = "") -> list[int]:
    """Whole numbers in the range `allowed`, separated by commas, each once; UserError for anything else."""
    numbers = [whole(key, word.strip(), allowed, hint) for word in _listed(key, text, hint)]
    twice = next((number for i, number in enumerate(numbers) if number in numbers[:i]), None)
    if twice is not None:
        raise UserError("bad_value", f"{key}={_short(text)} names {twice} twice.", hint)
    return numbers


def decimal(key: str, word: str, allowed: Range, hint: str = "") -> float:
    """A number in the range `allowed`; UserError for anything else, a NaN and an infinity among them."""
    try:
        number = float(word) if word.isascii() else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError("bad_type", f"{key}={_short(word)} is not a number.", hint or f"Such as {key}=0.8.")
    if why := allowed.why_not(number):
        raise UserError("bad_value", f"{key}={_short(word)} {why}.", hint)
    return number


def truth(key: str, word: str) -> bool:
    """True or false; UserError for any other word."""
    if word not in ("true", "false"):
        raise UserError("bad_type", f"{key}={_short(word)} is neither true nor false.", f"{key}=true, or leave it out.")
    return word == "true"


class Options:
    """The words behind a command: `plain` ones, and of the `key=value` options the values in `given`.

    With `known`, every other key is refused at once; without, a key is known once it has been asked for, and
    `refuse_rest` refuses the others. With `paths`, a word that is a directory, or has a slash before its equals sign,
    is plain. UserError for a key that is unknown or given twice.
    """

    def __init__(self, words: Sequence[str], known: Collection[str] | None = None, *, paths: bool = False) -> None:
        self.plain: list[str] = []
        self.given: dict[str, str] = {}
        self._known: list[str] = list(known or ())
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or (paths and key not in self._known and (os.sep in key or Path(word).is_dir())):
                self.plain.append(word)
            elif key in self.given:
                raise UserError("bad_override", f"'{_short(key)}' is given twice.", "Give it once.")
            else:
                self.given[key] = value
        if known is not None:
            self.refuse_rest()

    def numbers(self, key: str, default: Sequence[int], allowed: Range = COUNT) -> list[int]:
        """Whole numbers in the range `allowed`, separated by commas; UserError for anything else."""
        self._known.append(key)
        return wholes(key, self.given[key], allowed) if key in self.given else list(default)

    def number(self, key: str, default: int, allowed: Range = COUNT) -> int:
        """One whole number in the range `allowed`."""
        self._known.append(key)
        return whole(key, self.given[key], allowed) if key in self.given else default

    def words(self, key: str) -> list[str]:
        """Words separated by commas, each once; empty where the key is not given."""
        self._known.append(key)
        return list(dict.fromkeys(_listed(key, self.given[key]))) if key in self.given else []

    def names(self, key: str, known: Collection[str], default: Sequence[str] | None = None) -> list[str]:
        """Names out of `known`, separated by commas; UserError with the nearest one."""
        names = self.words(key)
        for name in names:
            if name not in known:
                raise UserError("unknown_name", f"There is no {key}={_short(name)} here.", nearest(name, known))
        return names or list(known if default is None else default)

    def name(self, key: str, known: Collection[str], default: str) -> str:
        """One name out of `known`."""
        names = self.names(key, known, [default])
        if len(names) != 1:
            raise UserError("bad_value", f"{key}={_short(self.given[key])} must be one name.")
        return names[0]

    def device(self) -> str:
        """The name of a device, `auto` where none is given."""
        self._known.append("device")
        name = self.given.get("device", "auto")
        read_device(name)
        return name

    def refuse_rest(self) -> None:
        """UserError for a key that nobody asked for."""
        for key in self.given:
            if key not in self._known:
                raise UserError("unknown_key", f"There is no option '{_short(key)}=' here.", nearest(key, self._known))


def _listed(key: str, text: str, hint: str = "") -> list[str]:
    words = text.removeprefix("[").removesuffix("]").split(",")
    if not all(word.strip() for word in words):
        what = "is empty" if not text.strip("[] ") else "has nothing between two commas"
        raise UserError("bad_value", f"{key}={_short(text)} {what}.", hint or f"Give a value, or leave {key}= out.")
    return [word.strip() for word in words]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."

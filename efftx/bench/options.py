"""The words after `efftx bench NAME`: `lengths=1024,4096 names=lsh-4`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from efftx.device_names import read_device
from efftx.errors import UserError, nearest


class Options:
    """`key=value` words; every key is asked for once by the bench that knows it, and `refuse_rest` finds the others."""

    def __init__(self, words: Sequence[str]) -> None:
        self._given: dict[str, str] = {}
        self._known: list[str] = []
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or not key or not value:
                raise UserError("bad_override", f"'{word}' is not of the form key=value.", "Such as lengths=1024,4096.")
            if key in self._given:
                raise UserError("bad_override", f"'{key}' is given twice.")
            self._given[key] = value

    def numbers(self, key: str, default: Sequence[int]) -> list[int]:
        """Positive whole numbers, separated by commas; UserError for anything else."""
        self._known.append(key)
        if key not in self._given:
            return list(default)
        numbers = []
        for word in _words(self._given[key]):
            if not word.isdecimal() or int(word) < 1:
                raise UserError("bad_value", f"{key}={word} must be a whole number of at least 1.")
            numbers.append(int(word))
        return list(dict.fromkeys(numbers))

    def number(self, key: str, default: int) -> int:
        """One positive whole number."""
        numbers = self.numbers(key, [default])
        if len(numbers) != 1:
            raise UserError("bad_value", f"{key}={self._given[key]} must be one number.")
        return numbers[0]

    def words(self, key: str) -> list[str]:
        """Words separated by commas, each once; empty where the key is not given."""
        self._known.append(key)
        return list(dict.fromkeys(_words(self._given[key]))) if key in self._given else []

    def names(self, key: str, known: Collection[str], default: Sequence[str] | None = None) -> list[str]:
        """Names out of `known`, separated by commas; UserError with the nearest one."""
        self._known.append(key)
        if key not in self._given:
            return list(known if default is None else default)
        names = list(dict.fromkeys(_words(self._given[key])))
        for name in names:
            if name not in known:
                raise UserError("unknown_name", f"There is no {key}={name} here.", nearest(name, known))
        return names

    def name(self, key: str, known: Collection[str], default: str) -> str:
        """One name out of `known`."""
        names = self.names(key, known, [default])
        if len(names) != 1:
            raise UserError("bad_value", f"{key}={self._given[key]} must be one name.")
        return names[0]

    def device(self) -> str:
        """The name of a device, `auto` where none is given."""
        name = self.words("device") or ["auto"]
        read_device(",".join(name))
        return name[0]

    def refuse_rest(self) -> None:
        """UserError for a key that nobody asked for."""
        for key in self._given:
            if key not in self._known:
                raise UserError("unknown_key", f"This bench has no option '{key}'.", nearest(key, self._known))


def _words(value: str) -> list[str]:
    return [word for word in value.strip("[]").split(",") if word] or [""]

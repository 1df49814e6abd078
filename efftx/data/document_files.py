"""Which files of a user hold train, valid and test, and which of their documents these are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from efftx.data.prepared import SPLITS
from efftx.data.text_files import find_files, kind_of, local_path
from efftx.errors import UserError

T = TypeVar("T")

_FORMAT, _PACKED = r"\.(jsonl|json|ndjson|parquet)", r"\.(gz|xz|bz2|zip)"
_DOCUMENTS = re.compile(f".+{_FORMAT}({_PACKED})?", re.IGNORECASE)
COMPRESSED = re.compile(f"{_PACKED}$", re.IGNORECASE)
"""The ending of a compressed file."""
_ENDINGS = re.compile(f"({_FORMAT})?({_PACKED})?$", re.IGNORECASE)
_COMES_LATER = re.compile(rf"({_PACKED}|\.(mp3|og[ga]|opus))$", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(tar|zip)$", re.IGNORECASE)
SPLIT_OF = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid", "test": "test"}
"""What files call a split -> the split."""
N_NAMED = 3
"""The most left-out files that a note names."""
_SPLIT_WORD = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLIT_OF)})(?=[^a-z]|$)")

# Split -> the files that it is a part of, from which per cent of their documents, and to which.
_Parts = dict[str, tuple[str, int, int]]
_WHOLE: _Parts = {split: (split, 0, 100) for split in SPLITS}
_HALVES: _Parts = {"train": ("train", 0, 100), "valid": ("valid", 0, 50), "test": ("valid", 50, 100)}
_NO_VALID: _Parts = {"train": ("train", 0, 95), "valid": ("train", 95, 100), "test": ("test", 0, 100)}
_ONE: _Parts = {"train": ("train", 0, 90), "valid": ("train", 90, 95), "test": ("train", 95, 100)}
_RULES = {(True, True): _WHOLE, (True, False): _HALVES, (False, True): _NO_VALID, (False, False): _ONE}
_CALLED = {(True, True): "", (True, False): ", validation halved", (False, True): ", 95/5", (False, False): ", 90/5/5"}


@dataclass(frozen=True)
class DocumentFiles:
    """Files by the split in their names; without such names all are training files, of which valid and test are parts.

    Train, valid and test where all three are named; else valid and test are the halves of the validation files; else
    valid is the last 5 % of the training documents; else the documents are split 90/5/5, in the order of the paths.
    """

    files: dict[str, list[Path]]
    notes: tuple[str, ...] = ()
    """What a user should hear of them: files that are in no split."""
    _counts: dict[tuple[str, int | None], int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def all(self) -> list[Path]:
        """Every file, train first."""
        return list(chain.from_iterable(self.files.values()))

    def by_split(self, sums: Sequence[str]) -> list[str]:
        """The sums of `all`, each split's name before those of its files: others where a file is in another split."""
        rest = iter(sums)
        return [word for split, files in self.files.items() for word in (split, *islice(rest, len(files)))]

    @cached_property
    def _has(self) -> tuple[bool, bool]:
        return "valid" in self.files, "test" in self.files

    @property
    def is_whole(self) -> bool:
        """Whether every split is a part of the same files, so that these and the rule say which."""
        return not any(self._has)

    @property
    def rule(self) -> str:
        """What a variant says of the split, after a comma; empty where every split has files of its own."""
        return _CALLED[self._has]

    def part(self, split: str) -> tuple[str, int, int]:
        """The group of files that a split is a part of, from which per cent of their documents, and to which."""
        return _RULES[self._has][split]

    def read(
        self, split: str, documents: Callable[[Path], Iterator[T | None]], at_most: int | None = None
    ) -> Iterator[T | None]:
        """The documents of a split, None for a place where there is none; of the training files the first `at_most`.

        `documents` gives those of a file, the same ones whenever it is asked.
        """
        group, first, last = self.part(split)
        most = at_most if group == "train" else None

        def stream() -> Iterator[T | None]:
            return take(chain.from_iterable(map(documents, self.files[group])), 0, most)

        if (first, last) == (0, 100):
            return stream()
        if (group, most) not in self._counts:
            self._counts[group, most] = sum(1 for document in stream() if document is not None)
        count = self._counts[group, most]
        return take(stream(), count * first // 100, None if last == 100 else count * last // 100)


def take(documents: Iterable[T | None], start: int, stop: int | None) -> Iterator[T | None]:
    """Documents number `start` to `stop` - 1, and what stands between them as None."""
    number = 0
    if stop == 0:
        return
    for document in documents:
        if number >= start:
            yield document
        number += document is not None
        if number == stop:
            return


def find_documents(given: str, hint: str) -> DocumentFiles:
    """The files that `given` (a file, a folder or a pattern) means; `UserError` with `hint` where there is none.

    In a folder these are train, valid and test with .jsonl, .json or .parquet behind, plain or compressed, each in one
    file or in shards (train.0.jsonl), or where one is missing all such files at any depth.
    """
    return find_named(given, hint, _DOCUMENTS, ".jsonl, .json or .parquet file", _ENDINGS)


def find_named(given: str, hint: str, names: re.Pattern[str], what: str, forms: re.Pattern[str]) -> DocumentFiles:
    """As `find_documents`, of the files whose names match `names`; the message calls one `what`.

    Of those that differ in an ending that matches `forms` alone, one is read (`once`).
    """
    base = local_path(given)
    if kind_of(base) not in ("folder", "missing"):
        return DocumentFiles({"train": [base]})
    found = [file for file in find_files(given, hint) if names.fullmatch(file.name)]
    if not found:
        raise UserError("missing_file", f"data.path={given} holds no {what}.", hint)
    matching = once(found, forms)
    notes = other_forms(base, found, matching)
    if all(named := [_named(base, split, matching) for split in SPLITS]):
        return _without_rest(dict(zip(SPLITS, named, strict=True)), base, matching, notes)
    files: dict[str, list[Path]] = {}
    for file in matching:
        place = file.relative_to(base) if file.is_relative_to(base) else Path(file.parent.name, file.name)
        words = _SPLIT_WORD.findall(str(place).lower())
        files.setdefault(SPLIT_OF[words[-1]] if words else "", []).append(file)
    if "train" not in files:
        return DocumentFiles({"train": matching}, notes)
    return _without_rest({split: files[split] for split in SPLITS if split in files}, base, matching, notes)


def once(files: Sequence[Path], forms: re.Pattern[str]) -> list[Path]:
    """`files` without those that hold in another form, compressed say, what another one holds.

    These stand in the same folder and differ in an ending that matches `forms` alone: the first is kept, a plain one
    before a compressed one. An archive is another form of the folder that has its name, too.
    """
    folders = {folder for file in files for folder in file.parents}
    kept: dict[tuple[Path, str], Path] = {}
    for file in files:
        if _ARCHIVE.search(file.name) and file.parent / _ARCHIVE.sub("", file.name) in folders:
            continue
        stem = file.parent, forms.sub("", file.name)
        if stem not in kept or (_COMES_LATER.search(kept[stem].name) and not _COMES_LATER.search(file.name)):
            kept[stem] = file
    read = set(kept.values())
    return [file for file in files if file in read]


def other_forms(base: Path, found: Iterable[Path], read: Iterable[Path]) -> tuple[str, ...]:
    """The note of the files that `once` leaves out; none where it leaves out none."""
    kept = set(read)
    rest = [file for file in found if file not in kept]
    return (f"Left out: {_listed(base, rest)}, other forms of files that are read.",) if rest else ()


def _without_rest(files: dict[str, list[Path]], base: Path, found: list[Path], notes: tuple[str, ...]) -> DocumentFiles:
    """`files` by split, with a note that names those of `found` that are in none."""
    kept = set(chain.from_iterable(files.values()))
    if rest := [file for file in found if file not in kept]:
        notes = (*notes, f"Left out: {_listed(base, rest)}, beside files that are named by split.")
    return DocumentFiles(files, notes)


def _listed(base: Path, files: list[Path]) -> str:
    """The names of the first N_NAMED of some files, and how many more there are."""
    names = [str(file.relative_to(base)) if file.is_relative_to(base) else file.name for file in files]
    more = len(names) - N_NAMED
    return ", ".join(names[:N_NAMED]) + (f" and {more} more file{'s' * (more > 1)}" if more > 0 else "")


def _named(folder: Path, split: str, files: list[Path]) -> list[Path]:
    """The files of a folder that are called after the split alone, shards such as `train.0.jsonl` among them."""
    return [file for file in files if file.parent == folder and SPLIT_OF.get(file.name.split(".")[0]) == split]

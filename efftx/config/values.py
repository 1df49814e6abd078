"""What each number and word of a configuration may be by itself: finite, and within the range of its key."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin, get_type_hints

from efftx.errors import UserError

if TYPE_CHECKING:
    from efftx.config.schema import Config

MOST_SEED = 2**63 - 1
MOST_THREADS = 1024
"""Beyond some tens of thousands PyTorch's pool of threads ends the process."""
_MOST_STEPS = 10**12
_MOST_ROWS = 2**20
_MOST_TOKENS = 2**31 - 1
_MOST_WIDTH = 2**24


class Range(NamedTuple):
    """The least and the most that a number may be; `open_` leaves out the least, `below` the most."""

    least: float
    most: float
    open_: bool = False
    below: bool = False

    def why_not(self, number: float) -> str:
        """What `number` must be and is not; empty where it is in the range."""
        if not abs(number) <= sys.float_info.max:
            return "must be a finite number"
        if number < self.least or (self.open_ and number == self.least):
            if self.least == 0 and not self.open_:
                return "must not be negative"
            return f"must be {'above' if self.open_ else 'at least'} {_plain(self.least)}"
        if number > self.most or (self.below and number == self.most):
            return f"must be {'less than' if self.below else 'at most'} {_plain(self.most)}"
        return ""


_SHARE = Range(0, 1)
_RATE = Range(0, 1, below=True)
_STEPS = Range(0, _MOST_STEPS)
_WIDTH = Range(1, _MOST_WIDTH)

RANGES: dict[str, Range] = {
    "n_layers": Range(1, 10_000),
    "n_encoder_layers": Range(1, 10_000),
    "attention_per_block": Range(1, 100),
    "d_model": _WIDTH,
    "d_ff": _WIDTH,
    "n_heads": _WIDTH,
    "d_head": _WIDTH,
    "d_qk": _WIDTH,
    "dropout": _RATE,
    "attention_dropout": _RATE,
    "norm_eps": Range(1e-30, 1),
    "lsh.n_hashes": Range(1, 1024),
    "lsh.n_buckets": Range(0, _MOST_WIDTH),
    "lsh.chunk_len": Range(1, _MOST_TOKENS),
    "local.chunk_len": Range(1, _MOST_TOKENS),
    "fixed.sub_blocks": Range(1, _MOST_TOKENS),
    "positions.axial_dims": Range(0, _MOST_WIDTH),
    "positions.n_digits": Range(1, 1024),
    "positions.start_from_zero": _SHARE,
    "positions.base_dropout": _SHARE,
    "sparse_ff.N": Range(0, _MOST_WIDTH),
    "sparse_ff.temperature": Range(0, 1e6),
    "sparse_ff.token_bias": Range(0, 1e6),
    "sparse_ff.quant_prob": _SHARE,
    "sparse_qkv.S": Range(0, _MOST_WIDTH),
    "sparse_qkv.F": _WIDTH,
    "sparse_qkv.rank": Range(0, _MOST_WIDTH),
    "sparse_loss.S": Range(0, _MOST_WIDTH),
    "sru.n_layers": Range(0, 100),
    "sru.d": _WIDTH,
    "init.embedding_std": Range(0, 1e3, open_=True),
    "init.position_std": Range(0, 1e3),
    "init.weights": Range(0, 1e3),
    "training.steps": _STEPS,
    "training.batch_size": Range(1, _MOST_ROWS),
    "training.accumulation": Range(1, _MOST_ROWS),
    "training.clip_norm": Range(0, math.inf),
    "optimizer.lr": Range(0, math.inf, open_=True),
    "optimizer.betas": _RATE,
    "optimizer.eps": Range(1e-30, math.inf),
    "optimizer.weight_decay": _RATE,
    "optimizer.weight_decay_n_steps": _STEPS,
    "optimizer.decay_exponent": Range(0, 1, open_=True),
    "schedule.warmup": _STEPS,
    "schedule.steps": _STEPS,
    "schedule.floor": _STEPS,
    "ema.decay": _RATE,
    "evaluation.every": _STEPS,
    "evaluation.batches": Range(0, 10**6),
    "evaluation.stop_at_accuracy": Range(0, 100),
    "evaluation.beam": Range(1, 1024),
    "evaluation.length_penalty": Range(0, 100),
    "training.label_smoothing": _RATE,
    "checkpoint.every": _STEPS,
    "checkpoint.keep": Range(1, _MOST_ROWS),
    "seed": Range(0, MOST_SEED),
    "threads": Range(1, MOST_THREADS),
    "data.length": Range(1, _MOST_TOKENS),
    "data.side": Range(1, 2**10),
    "data.rate": Range(1000, 192_000),
}
"""The range of a number of the schema, of each entry where the key is a list; a whole one of none is a `COUNT`.

The most is generous: more than any machine holds, and little enough that nothing counts beyond 64 bits or hangs. What a
mechanism says of its own lists (an even number of buckets, two at least) it says in a sentence of its own.
"""
COUNT = Range(0, _MOST_TOKENS)
"""That of a whole number which is not listed: of tokens, as a rule."""


def check_types(node: Any, prefix: str = "") -> None:
    """Raises UserError where a key holds what its annotation does not allow.

    Hydra checks what is written out; what `${...}` gives for a list or a node it takes as it is.
    """
    for name, (kind, is_list, optional) in _kinds(type(node)).items():
        key, value = prefix + name, getattr(node, name)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if not isinstance(value, kind):
                raise UserError("bad_type", f"{key} is a node of keys, and {value!r} is none.", f"Set {key}.NAME=.")
            check_types(value, f"{key}.")
            continue
        if is_list and not isinstance(value, list):
            raise UserError("bad_type", f"{key}={value!r} is not a list.", f"Write {key}=[...].")
        for entry in value if is_list else [value]:
            fits = isinstance(entry, kind) or (kind is float and isinstance(entry, int))
            if (kind is not bool and isinstance(entry, bool)) or not (fits or (optional and entry is None)):
                raise UserError("bad_type", f"{key}={value!r} is not {_WORDS[kind]}.", "Write the value out.")


def check_given(kind_of: Callable[[str], Kind | None], key: str, value: Any, word: str = "") -> None:
    """Raises UserError for an override whose value OmegaConf would read as another, or refuse in words of its own.

    True or false is wanted where the key is a switch (2 is neither, which OmegaConf takes for true), a number without
    point or exponent where it is a whole one. `kind_of` gives a key's kind, `word` is the value as written.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            check_given(kind_of, f"{key}.{name}", inner)
        return
    kind, written = kind_of(key), f"{key}={word or value}"
    if kind is None or _is_reference(value) or (value is None and kind.optional):
        return
    if dataclasses.is_dataclass(kind.plain):
        name = dataclasses.fields(kind.plain)[0].name
        hint = f"Set them one by one, such as {key}.{name}=; `efftx train --cfg job --package {key}` shows them."
        raise UserError("bad_type", f"{written}: {key} is no value, but has keys of its own.", hint)
    if kind.is_list and not isinstance(value, list):
        raise UserError("bad_type", f"{written} is not a list.", f"Write '{key}=[{word or value}]'.")
    for entry in value if kind.is_list else [value]:
        if not _is_reference(entry):
            _check_entry(kind.plain, key, entry, written)


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _check_entry(plain: Any, key: str, value: Any, written: str) -> None:
    """Raises UserError where one value is not of its key's plain type."""
    if plain is bool and str(value).lower() not in _SWITCHES:
        raise UserError("bad_type", f"{written} is neither true nor false.", f"Write {key}=true or {key}=false.")
    if plain is int and isinstance(value, float):
        whole = math.isfinite(value) and value.is_integer() and abs(value) < 10**21
        hint = f"Write {key}={int(value)}." if whole else "Write a number without a point or an exponent."
        raise UserError("bad_type", f"{written} is not written as a whole number.", hint)
    if plain in (int, float) and not _is_number(plain, value):
        hint = f"Write {_WORDS[plain]}, such as {key}={4 if plain is int else 0.5}."
        raise UserError("bad_type", f"{written} is not {_WORDS[plain]}.", hint)
    if plain is str and (value is None or isinstance(value, list | dict)):
        raise UserError("bad_type", f"{written} is not {_WORDS[str]}.", "Write one value, neither null nor a list.")
    if plain is str and isinstance(value, int | float) and str(value) != written.partition("=")[2]:
        hint = f"Write it in quotes twice: \"{key}='{written.partition('=')[2]}'\"."
        raise UserError("bad_type", f"{written} would be read as {value}.", hint)


def _is_number(plain: type[int] | type[float], value: Any) -> bool:
    """Whether OmegaConf takes `value` for a number: one in quotes is one."""
    try:
        return isinstance(value, int | float | str) and not isinstance(value, bool) and plain(value) is not None
    except ValueError:
        return False


_SWITCHES = ("true", "yes", "y", "on", "1", "false", "no", "n", "off", "0")
"""What OmegaConf reads as a truth value."""


class Kind(NamedTuple):
    """A key's plain type or node, whether it is a list of those, and whether it may be null."""

    plain: Any
    is_list: bool
    optional: bool


def kind_of(schema: Any, key: str) -> Kind | None:
    """The kind of one key; None where the schema has none of that name."""
    name, _, rest = key.partition(".")
    kind = _kinds(schema).get(name)
    if kind is None or not rest:
        return kind
    return kind_of(kind.plain, rest) if dataclasses.is_dataclass(kind.plain) else None


_KINDS: dict[Any, dict[str, Kind]] = {}


def _kinds(schema: Any) -> dict[str, Kind]:
    """The kind of each field."""
    if schema in _KINDS:
        return _KINDS[schema]
    kinds = _KINDS[schema] = {}
    for name, hint in get_type_hints(schema).items():
        arguments = get_args(hint)
        is_list, optional = get_origin(hint) is list, type(None) in arguments
        plain = next((part for part in arguments if part is not type(None)), hint)
        kinds[name] = Kind(plain, is_list, optional)
    return kinds


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def check_values(config: Config) -> None:
    """Raises UserError for a number that is not finite or out of its key's range, and a word no file name can hold."""
    for key, value in values_of(config):
        if isinstance(value, str):
            if any(character < " " or character == "\x7f" or "\ud800" <= character <= "\udfff" for character in value):
                raise UserError("bad_value", f"{key}={value!r} holds a control character.", "Write plain text.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            check_number(key, value, RANGES.get(key, COUNT))


def check_number(key: str, number: float, allowed: Range) -> None:
    """Raises UserError where `number` is not finite or not in the range `allowed`."""
    if why := allowed.why_not(number):
        raise UserError("bad_value", f"{key}={_plain(number)} {why}.")


def values_of(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of a configuration, dotted, with its value; a list gives its key once an entry."""
    for field in dataclasses.fields(node):
        key, value = prefix + field.name, getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from values_of(value, f"{key}.")
        elif isinstance(value, list):
            yield from ((key, entry) for entry in value)
        else:
            yield key, value


def _plain(number: float) -> str:
    """A number as a person would write it: one of thousands of digits cannot be turned into text at all."""
    if isinstance(number, float):
        return f"{number:g}"
    return str(number) if abs(number) < 10**21 else "(a number of many digits)"

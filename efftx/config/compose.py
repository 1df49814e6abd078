"""How a configuration is composed through Hydra from files and `key=value` words, and checked once.

Nothing below ever sees a wrong key, type or combination.
"""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from os.path import expanduser
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra import main as hydra_main
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from efftx.config.checks import check_config, check_names, dead_reason, refuse_dead_keys
from efftx.config.hydra_errors import SHOW_ALL, as_user_error, first_lines, unresolved
from efftx.config.own_files import check_own_files
from efftx.config.schema import FACTORED, Config
from efftx.config.values import Kind, check_given, check_types, check_values, kind_of
from efftx.core.shipped import shipped
from efftx.data import dataset as data_sets
from efftx.errors import UserError, nearest

PATHS = ("data.path", "data.tokenizer_path", "pretrained", "run_dir")
GROUPS = ("model", "data", "size", "preset")


def register_schema() -> None:
    """Makes the dataclasses known to Hydra: the root as `schema`, each data set's node as `data/schema/<name>`."""
    _register(tuple(data_sets.names()))


@cache
def _register(names: tuple[str, ...]) -> None:
    OmegaConf.register_new_resolver("by_size", _by_size, replace=True)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for name in names:
        store.store(group="data/schema", name=name, node=data_sets.find_source(name).config)


def compose(
    overrides: Sequence[str] = (), *, config_dirs: Iterable[str | Path] = (), derived: Sequence[str] = ()
) -> Config:
    """The checked configuration that Hydra composes from conf/, `config_dirs` and the overrides, in that precedence.

    `preset=reformer/enwik8_2020` is short for Hydra's `preset@_global_=...`. Raises UserError for an unknown key or
    choice (with the nearest known one), a wrong type, a sweep, an impossible combination, and a key that no active
    mechanism reads. `derived` are overrides that imported weights imply: they come first, and may set a mechanism that
    is off.
    """
    parsed, own_overrides = parse_overrides([*derived, *overrides]), parse_overrides(overrides)
    for override in own_overrides:
        if _is_hydras(override):
            hint = "Leave it out; `efftx ablate` takes hydra/launcher=, and --config-dir a folder of your own."
            raise UserError(
                "dead_key", f"'{override.key_or_group}' is Hydra's own and would change nothing here.", hint
            )
        if override.is_sweep_override():
            raise UserError(
                "sweep",
                f"'{override.input_line}' names several values, and a run has one.",
                "Use `efftx ablate` to run them all; put a list in brackets, such as attention=[local,lsh].",
            )
    config = to_config(_compose_raw(parsed, config_dirs), parsed)
    check_names(config)
    refuse_dead_keys(config, _given_keys(own_overrides))
    check_config(config)
    return config


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Hydra's reading of `key=value` words; UserError for a word that is none."""
    words = [_quoted_path(plain_word(word)) for word in overrides]
    for at, word in enumerate(words):
        if ("=" not in word and not word.startswith("~")) or word.startswith("="):
            hint = _in_one_word(words, at) or "Such as model=reformer; see `efftx train --help`."
            raise UserError("bad_override", f"'{word}' is not of the form key=value.", hint)
    try:
        return [_parsed(word) for word in words]
    except (ValueError, RecursionError) as error:  # thousands of digits, thousands of brackets
        shown = next((word for word in words if len(word) > 1000), words[0])[:60]
        raise UserError("bad_override", f"'{shown}...' is too long to be read: {error}.") from error


def _parsed(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        key = word.partition("=")[0]
        hint = f"Close what is open, and put a value with spaces, commas or brackets in quotes twice: \"{key}='...'\"."
        raise UserError("bad_override", f"'{word}' cannot be read.", hint) from error


def _in_one_word(words: Sequence[str], at: int) -> str:
    """What to type for `lsh.n_hashes = 4`, `lsh.n_hashes= 4` or `model reformer`, of which `words[at]` is a part."""
    if at and words[at - 1].endswith("="):
        return f"Write {words[at - 1]}{words[at]}, without a space."
    key, *behind = words[at : at + 3]
    value = next((word.lstrip("=") for word in behind if word.strip("=")), "")
    if key not in {*known_keys(), *GROUPS} or not value or "=" in value:
        return ""
    return f"Write {key}={value}, without a space."


def _quoted_path(word: str) -> str:
    """A word with its path in quotes where Hydra's grammar cannot read it: `~/x`, `my (1).txt`, `日本.txt`.

    And where it would read a number: 2024_01_15 is a folder.
    """
    key, _, value = word.partition("=")
    if key not in PATHS:
        return word
    try:
        parsed = OverridesParser.create().parse_override(word).value()
    except (HydraException, ValueError, RecursionError):  # the latter two: thousands of digits, thousands of brackets
        return f"{key}={quoted(value)}"
    return f"{key}={quoted(value)}" if isinstance(parsed, int | float) else word


def quoted(text: str) -> str:
    """`text` as Hydra reads it back, whatever is in it: commas, brackets, quotes, spaces."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", r"\'"), text)
    return f"'{escaped}'"


def search_path(config_dirs: Iterable[str | Path]) -> list[str]:
    """The word that has Hydra look into these folders too; none where there are none."""
    folders = ",".join(quoted(f"file://{Path(d).resolve()}") for d in config_dirs)
    return [f"hydra.searchpath=[{folders}]"] if folders else []


def plain_word(word: str) -> str:
    """An override in the one spelling that is read: + and ++ add nothing, for every key has a value."""
    return re.sub(r"^preset=", "preset@_global_=", re.sub(r"^\+{1,2}", "", word))


def expand_sweeps(overrides: Sequence[str]) -> list[list[str]]:
    """The Cartesian product of overrides such as `lsh.n_hashes=1,2`, as lists of single-valued overrides."""
    points: list[list[str]] = [[]]
    for override in parse_overrides(overrides):
        if not override.is_sweep_override():
            choices = [str(override.input_line)]
        elif override.is_discrete_sweep() and not isinstance(override.value(), Glob):
            key = override.get_key_element()
            choices = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not choices:
                raise UserError("bad_override", f"'{override.input_line}' names no value.", "List them: key=a,b,c.")
        else:
            raise UserError(
                "bad_override", f"'{override.input_line}' does not list its values.", "List them: key=a,b,c."
            )
        points = [[*point, choice] for point in points for choice in choices]
    return points


def swept_keys(overrides: Sequence[str]) -> list[str]:
    """The keys that take several values, in order."""
    return [o.get_key_element() for o in parse_overrides(overrides) if o.is_sweep_override()]


def from_dict(saved: Mapping[str, Any]) -> Config:
    """The configuration that `to_dict` gave; UserError where it is not one of this version of efftx."""
    data = saved.get("data")
    source = data_sets.find_source(str(data.get("name") if isinstance(data, Mapping) else data))
    try:
        raw = OmegaConf.structured(Config)
        raw.data = OmegaConf.structured(source.config(**saved["data"]))
        merged = OmegaConf.merge(raw, {key: value for key, value in saved.items() if key != "data"})
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError, ValueError, AttributeError, RecursionError) as error:
        message = f"A saved configuration is none of this version: {first_lines(error)}."
        raise UserError("other_config", message, "Use the version of efftx that wrote it, or train again.") from error
    assert isinstance(config, Config)
    check_types(config)
    check_values(config)
    return config


def run_hydra(words: Sequence[str], config_dirs: Iterable[str | Path] = ()) -> str:
    """What Hydra's own command line prints for `words`: `--info`, `--shell-completion` and the like.

    It is given once Hydra has ended, which answers a reader that went away with a traceback of its own.
    """
    printed = io.StringIO()
    register_schema()
    GlobalHydra.instance().clear()
    settings = ["hydra.output_subdir=null", "hydra.run.dir=.", *search_path(config_dirs)]
    previous, sys.argv = sys.argv, ["efftx", *words, *settings]
    try:
        with contextlib.redirect_stdout(printed):
            hydra_main(config_path=str(shipped("conf")), config_name="train", version_base="1.3")(_nothing)()
    finally:
        sys.argv = previous
    return printed.getvalue()


def _nothing(config: Any) -> None:
    """Hydra answers its own flags before it would call this."""


def known_keys(config_class: type = Config, prefix: str = "") -> list[str]:
    """Every key of the schema in dotted form, those of all data sets included."""
    keys = []
    for item in dataclasses.fields(config_class):
        name = prefix + item.name
        if item.name == "data" and config_class is Config:
            for source in data_sets.names():
                keys += known_keys(data_sets.find_source(source).config, "data.")
        elif dataclasses.is_dataclass(item.type):
            assert isinstance(item.type, type)
            keys += known_keys(item.type, name + ".")
        else:
            keys.append(name)
    return sorted(set(keys))


NAMES_ATTENTION = {"model", "attention", "preset"}
"""Where none of these is given, a key of a factored one means the Sparse Transformer with that pattern."""


SMOKE_LENGTH = 64
"""Tokens of a row for which every model's preset of size smoke has room."""


def with_implied(overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra itself is given them, with those that they imply behind them.

    A key of a factored pattern, without a model or an attention, means the Sparse Transformer with that pattern. A data
    set whose rows are sentences has them, and their targets, as long as it says itself in place of the model's preset
    of the size, of which the rest would be padding; a preset that is named is taken as it is.
    """
    parsed = parse_overrides(overrides)
    chosen = {str(o.key_or_group): o for o in parsed}
    words = [str(o.input_line) for o in parsed]
    patterns = {key.partition(".")[0] for key in chosen} & set(FACTORED)
    if patterns and not chosen.keys() & NAMES_ATTENTION:
        words += ["model=sparse_transformer", f"attention=[{','.join(sorted(patterns))}]"]
    data, size = (str(chosen[key].value()) if key in chosen else "" for key in ("data", "size"))
    length = data_sets.find_source(data).own_length if data in data_sets.names() and "preset" not in chosen else 0
    if size == "smoke":
        length = min(length, SMOKE_LENGTH)
    lengths = {"data.length", "data.target_length"} - chosen.keys() if length else set()
    return [*words, *(f"{key}={length}" for key in sorted(lengths))]


def _compose_raw(parsed: Sequence[Override], config_dirs: Iterable[str | Path]) -> Any:
    register_schema()
    words = with_implied([str(o.input_line) for o in parsed])
    config_dirs = list(config_dirs)
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise UserError(
                "missing_file",
                f"--config-dir {folder} is not a folder.",
                "Give the folder that holds model/, data/, ...",
            )
    words += search_path(config_dirs)
    refuse_unknown_keys(parsed, config_dirs)
    check_own_files({str(o.key_or_group): str(o.value()) for o in parsed if o.key_or_group in GROUPS}, config_dirs)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(shipped("conf")), version_base="1.3"):
            return hydra_compose("train", overrides=words)
    except (HydraException, OmegaConfBaseException) as error:
        raise as_user_error(error, config_dirs) from error
    except Exception as error:  # what Hydra lets through of a file or word that it cannot read has no common type
        why = f"{type(error).__name__}: {first_lines(error)}"
        raise UserError("bad_value", f"This configuration cannot be composed: {why}", SHOW_ALL) from error


def to_config(raw: Any, overrides: Sequence[Override] = ()) -> Config:
    """The typed configuration of what Hydra composed of the files and `overrides`, with `objective=auto` resolved.

    Where the overrides name another optimiser or schedule, the constants of the files' own that it does not read are
    back at their defaults. UserError where a value is missing or of a wrong type, and where an interpolation leads
    nowhere.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(raw))
        config = None if missing else OmegaConf.to_object(raw)
    except InterpolationResolutionError as error:
        raise unresolved(raw, error) from error
    except RecursionError as error:
        raise UserError("bad_interpolation", "The configuration's ${...} lead in a circle, or too deep.") from error
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError("bad_value", first_lines(error), SHOW_ALL) from error
    if missing:
        raise UserError(
            "missing_key",
            f"No value is given for {', '.join(missing)}.",
            "Set it, or choose a model, data set and size that do.",
        )
    assert isinstance(config, Config)
    check_types(config)
    if config.objective == "auto":
        config.objective = _objective_of(config)
    if row_length := data_sets.find_source(config.data.name).row_length:
        config.data.length = row_length(config.data)
    given = _given_keys(overrides)
    for name in ("optimizer", "schedule"):
        node = getattr(config, name)
        for item in dataclasses.fields(node) if f"{name}.name" in given else ():
            if dead_reason(config, f"{name}.{item.name}") is not None:
                setattr(node, item.name, getattr(type(node)(), item.name))
    config.run_dir, config.pretrained = (path and expanduser(path) for path in (config.run_dir, config.pretrained))
    return config


def _given_keys(overrides: Sequence[Override]) -> list[str]:
    """The keys that the overrides set, without the choices of whole files."""
    return [key for o in overrides if not _is_group(o) for key in _keys_of(str(o.key_or_group), o.value())]


def _objective_of(config: Config) -> str:
    """What `auto` means: lm for a decoder, else pairs where the data set has them, else span corruption."""
    if config.stack == "decoder":
        return "lm"
    return "seq2seq" if "seq2seq" in data_sets.find_source(config.data.name).objectives else "span_corruption"


def _by_size(paper: Any, cpu: Any, smoke: Any, *, _root_: Any) -> Any:
    """`${by_size:a,b,c}` in a data set's file: the value at size paper, cpu (and gpu, or a user's own) and smoke."""
    return {"paper": paper, "smoke": smoke}.get(_root_.size, cpu)


def split_hydra(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of efftx's own keys, and those of Hydra's (`hydra/launcher=joblib`, `hydra.launcher.n_jobs=2`)."""
    parsed = parse_overrides(overrides)
    words = [str(o.input_line) for o in parsed if not _is_hydras(o)]
    return words, [str(o.input_line) for o in parsed if _is_hydras(o)]


def _is_hydras(override: Override) -> bool:
    return re.match(r"hydra\b", str(override.key_or_group)) is not None


def _keys_of(key: str, value: Any) -> list[str]:
    """The keys that an override sets: its own, or those inside a node given as a whole, such as `lsh={n_hashes: 4}`.

    Those inside a node that are null, 0 or false are left out: they switch off what the model's own file has there.
    """
    if not isinstance(value, dict) or not value:
        return [key]
    set_inside = {name: inner_value for name, inner_value in value.items() if inner_value not in (None, 0, False)}
    return [inner for name, inner_value in set_inside.items() for inner in _keys_of(f"{key}.{name}", inner_value)]


def _is_group(override: Override) -> bool:
    return override.key_or_group in GROUPS


def refuse_unknown_keys(parsed: Sequence[Override], config_dirs: Iterable[str | Path] = ()) -> None:
    """Raises UserError, with the nearest known one, for a key or a choice that does not exist; sweeps are not read."""
    known = known_keys()
    nodes = {key.rsplit(".", 1)[0] for key in known if "." in key}
    for override in parsed:
        key = str(override.key_or_group)
        if override.is_delete():
            raise UserError("bad_override", f"'{override.input_line}' would take a key away; every key has a value.")
        if _is_hydras(override):
            continue
        if _is_group(override):
            if override.is_sweep_override():
                continue
            _refuse_unknown_choice(override, config_dirs)
        elif key not in known and key not in nodes:
            hint = nearest(key, [*known, *GROUPS], at_most=0) or SHOW_ALL
            if key.rpartition(".")[2] in ("resume", "resume_from", "restart"):
                hint = "The same command again goes on from its last checkpoint; run_dir= says where a run lives."
            raise UserError("unknown_key", f"There is no key '{key}'.", hint)
        elif not override.is_sweep_override():
            check_given(_kind_of, key, override.value(), str(override.input_line).partition("=")[2])


def _kind_of(key: str) -> Kind | None:
    node, _, rest = key.partition(".")
    if node != "data":
        return kind_of(Config, key)
    kinds = {kind_of(data_sets.find_source(name).config, rest) for name in data_sets.names()} - {None}
    return kinds.pop() if len(kinds) == 1 else None


def _refuse_unknown_choice(override: Override, config_dirs: Iterable[str | Path]) -> None:
    group, value = str(override.key_or_group), str(override.value())
    if "${" in value:  # preset=${model}/name: Hydra says if there is none of that name
        return
    folders = [Path(d) / group for d in (shipped("conf"), *config_dirs)]
    known = sorted({str(p.relative_to(f).with_suffix("")) for f in folders if f.is_dir() for p in f.rglob("*.yaml")})
    if value not in known:
        raise UserError(f"unknown_{group}", f"There is no {group} '{value}'.", nearest(value, known))

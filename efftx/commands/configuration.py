"""`--cfg` and `--info`: what a command's overrides compose to, shown by Hydra or as JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import reduce
from typing import Any

from omegaconf import OmegaConf

from efftx.commands.outcome import Outcome
from efftx.commands.plan import read_words
from efftx.commands.words import HYDRA_FLAGS
from efftx.config.compose import compose, expand_sweeps, plain_word, run_hydra, split_hydra, with_implied
from efftx.config.schema import to_dict
from efftx.errors import UserError, nearest

_LONG = {"-c": "--cfg", "-i": "--info", "-p": "--package"}
_SHOWN = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}


def configurations(command: str, arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """`--cfg job` with `--json`: the resolved configuration, or a node of it; one a point in an ablation."""
    flags, overrides = _split(words)
    flag_values = _read(command, flags)
    if flag_values.get("--cfg") != "job":
        what = "--cfg " + str(flag_values["--cfg"]) if "--cfg" in flag_values else next(iter(flag_values))
        raise UserError("bad_command", f"{what} is Hydra's own and prints no JSON.", "Leave --json out.")
    package = flag_values.get("--package")
    points = _points(command, split_hydra(overrides)[0] if command == "ablate" else overrides)
    composed = [
        {"overrides": point, "config": _node(to_dict(compose(point, config_dirs=arguments.config_dir)), package)}
        for point in points
    ]
    return Outcome({"configurations": composed}, lambda console: None)


def hand_to_hydra(command: str, arguments: argparse.Namespace, words: list[str]) -> int:
    """Hydra's own answer to its flags; an ablation shows one configuration a point."""
    flags, overrides = _split(words)
    flag_values = _read(command, flags)
    for point in _points(command, overrides):
        config = compose(split_hydra(point)[0], config_dirs=arguments.config_dir)
        if command == "ablate":
            print(f"# {' '.join(point)}")
        if flag_values.get("--cfg") == "job":
            # Not Hydra's own answer, which lacks what overrides imply and what efftx resolves.
            _print_node(_node(to_dict(config), flag_values.get("--package")), flag_values.get("--package"))
        else:
            print(run_hydra([*flags, *with_implied(point)], arguments.config_dir), end="")
    return 0


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command's words as Hydra's own flags, with their values, and overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    for word in words:
        takes_value = bool(flags) and flags[-1] in HYDRA_FLAGS and flags[-1] != "--resolve"
        (flags if word.startswith("-") or (takes_value and "=" not in word) else overrides).append(word)
    if flags[-1] in ("--info", "-i"):
        flags.append("all")
    return flags, [plain_word(word) for word in overrides]


def _points(command: str, overrides: list[str]) -> list[list[str]]:
    """The overrides of each configuration that the command composes, as it composes them."""
    if command == "ablate":
        return expand_sweeps(overrides)
    return [read_words(overrides)[0]] if command == "plan" else [overrides]


def _print_node(node: Any, package: str | None) -> None:
    if package:
        print(f"# @package {package}")
    print(OmegaConf.to_yaml(OmegaConf.create(node)) if isinstance(node, dict | list) else f"{node}\n", end="")


def _read(command: str, flags: Sequence[str]) -> dict[str, str | None]:
    """Hydra's flags, each by its long name with its value; UserError for what Hydra would answer with its usage."""
    if command not in ("train", "ablate", "plan"):
        raise UserError("bad_command", f"`efftx {command}` composes no configuration.", "Use `efftx train`.")
    flag_values: dict[str, str | None] = {}
    for word in flags:
        if word.startswith("-"):
            flag, _, value = word.partition("=")
            flag = _LONG.get(flag, flag)
            flag_values[flag] = value or None
        else:
            flag_values[flag] = word
    for flag, known in _SHOWN.items():
        if flag in flag_values and (value := flag_values[flag] or "") not in known:
            message = f"'{value}' is nothing that {flag} shows." if value else f"{flag} needs a word."
            raise UserError("bad_command", message, nearest(value, known))
    if {"--package", "--resolve"} & set(flag_values) and "--cfg" not in flag_values:
        flag = next(flag for flag in flag_values if flag in ("--package", "--resolve"))
        raise UserError("bad_command", f"{flag} says how to show a configuration.", "Put `--cfg job` beside it.")
    if "--package" in flag_values and flag_values["--package"] is None:
        raise UserError("bad_command", "--package needs the name of a node.", "Such as `--cfg job --package lsh`.")
    return flag_values


def _node(config: dict[str, Any], package: str | None) -> Any:
    """The node or value at a dotted path of a configuration; UserError where there is none."""
    if package is None:
        return config
    try:
        return reduce(lambda node, key: node[key], package.split("."), config)
    except (KeyError, TypeError, IndexError):
        hint = nearest(package, [key for key, value in config.items() if isinstance(value, dict)])
        raise UserError("unknown_key", f"The configuration has no node '{package}'.", hint) from None

"""`efftx --shell-completion`: Hydra's scripts for the shell, and the words that they ask for at a key press."""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence

from efftx.commands import COMMANDS, Command
from efftx.commands.bench import LESS_MEMORY
from efftx.commands.data import ACTIONS as DATA_ACTIONS
from efftx.commands.import_weights import KINDS
from efftx.commands.words import COMPLETION_FLAGS, HYDRA_FLAGS
from efftx.config.compose import GROUPS, run_hydra
from efftx.core.shipped import shipped
from efftx.data.dataset import names
from efftx.errors import UserError
from efftx.study.experiments import load_experiments

ACTIONS = ("install=bash", "install=zsh", "install=fish", "uninstall=bash", "uninstall=zsh", "uninstall=fish")
QUERIES = {"query=bash": " ", "query=zsh": " ", "query=fish": "\n"}
"""What the scripts ask, with what stands between the words that they read."""
ITEMS = ("reproduce", "report", "power", "list")
WORDS = {"bench": tuple(LESS_MEMORY), "import": KINDS, "export": KINDS, "data": DATA_ACTIONS}


def complete(words: Sequence[str]) -> str:
    """Hydra's script for a shell (`install=`, `uninstall=`), or what that script asks for (`query=`).

    The line as far as it is typed stands in COMP_LINE. UserError for any other word.
    """
    asked = words[0] if len(words) == 1 else ""
    if asked in QUERIES:
        typed = os.environ.get("COMP_LINE", "")
        typed_words = typed.split()[1:]
        begun = "" if not typed_words or typed.endswith(" ") else typed_words.pop()
        return QUERIES[asked].join(word for word in _words(typed_words, begun) if word.startswith(begun))
    if asked not in ACTIONS:
        hint = """`eval "$(efftx --shell-completion install=bash)"` switches it on."""
        raise UserError("bad_command", f"{COMPLETION_FLAGS[0]} needs one of {', '.join(ACTIONS)}.", hint)
    return run_hydra([COMPLETION_FLAGS[0], asked]).rstrip()


def _words(given: Sequence[str], begun: str) -> Iterable[str]:
    """The words that may stand where `begun` does, behind the whole words `given`."""
    at = next((i for i, word in enumerate(given) if not word.startswith("-")), len(given))
    if at == len(given):
        return COMMANDS
    command, behind = COMMANDS.get(given[at]), given[at + 1 :]
    if command is None:
        return ()
    if begun.startswith("-"):
        return _options(command)
    if command.name in ITEMS:
        items = list(load_experiments())
        return ["all", *sorted({item.partition("/")[0] for item in items}), *items]
    fixed = WORDS.get(command.name, ())
    if fixed and not behind:
        return fixed
    if command.name == "data" and behind[0] != "list" and "." not in begun:
        return names()
    return _overrides([word for word in behind if "=" in word], begun) if command.composes else ()


def _options(command: Command) -> Iterable[str]:
    parser = ArgumentParser()
    parser.add_argument("--json")
    command.add_options(parser)
    return [*parser._option_string_actions, *(("--config-dir", *HYDRA_FLAGS) if command.composes else ())]


def _overrides(given: Sequence[str], begun: str) -> Iterable[str]:
    """Keys and values of a configuration: Hydra's, and the groups as efftx spells them."""
    group, equals, _ = begun.partition("=")
    if equals and group in GROUPS:
        folder = shipped("conf") / group
        files = sorted(folder.rglob("*.yaml"))
        return [f"{group}={file.relative_to(folder).with_suffix('')}" for file in files]
    overrides = [re.sub("^preset=", "preset@_global_=", word) for word in given]
    os.environ["COMP_LINE"] = " ".join(["efftx", *overrides, begun])
    keys = run_hydra([COMPLETION_FLAGS[0], "query=fish"]).split()
    groups = [f"{group}=" for group in GROUPS]
    return groups + [key for key in keys if key.strip("/=") not in GROUPS and not key.startswith("hydra")]

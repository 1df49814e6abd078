"""The words behind a command: what is said of overrides, which flags there are, and what is refused."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence

from efftx.core.ranks import n_processes
from efftx.errors import UserError, nearest

OVERRIDES = """Overrides are key=value words, such as
  efftx train model=reformer data=enwik8 size=cpu lsh.n_hashes=4
  model=  reformer, scaling, sparse_transformer, terraformer, transformer
  data=   c4, cifar10, copy_add, duplicate, enwik8, glue, grammar, imagenet64,
          images, jsonl, music, photos, stdlib, summarization, text, wmt14
  size=   smoke (seconds), cpu (minutes), gpu, paper
`efftx train --cfg job` shows every key (--package lsh only one node);
--info all is Hydra's own."""

HYDRA_FLAGS = (
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--package",
    "-p",
    "--resolve",
)

COMPLETION_FLAGS = ("--shell-completion", "-sc")

_INSTEAD = {
    COMPLETION_FLAGS: "`efftx --shell-completion install=bash` comes before any command.",
    ("-m", "--multirun"): "`efftx ablate key=a,b` runs several values.",
    ("-cn", "--config-name", "-cp", "--config-path"): "model=, data= and size= choose the configuration; "
    "--config-dir adds a folder of your own.",
    ("--hydra-help",): "--cfg and --info are what is taken of Hydra; see `efftx train --help`.",
}


def refuse_flags(
    words: Sequence[str], known: Sequence[str] = (), settings: Callable[[], Collection[str]] = tuple
) -> None:
    """UserError for a word with a hyphen before it: with the nearest of `known`, or as what it is of `settings`."""
    for at, word in enumerate(words):
        if word.startswith("-"):
            flag = word.split("=", 1)[0]
            instead = next((way for flags, way in _INSTEAD.items() if flag in flags), "")
            slip = difflib.get_close_matches(flag, known, n=1, cutoff=0.8)
            hint = instead or ("" if slip else _without_hyphens(word, words[at + 1 :], settings()))
            hint = hint or nearest(flag, known)
            raise UserError("bad_command", f"There is no option '{word}' here.", hint)


def _without_hyphens(word: str, behind: Sequence[str], settings: Collection[str]) -> str:
    """`--model reformer` as it is to be typed; empty where there is no such setting."""
    name, _, value = word.lstrip("-").partition("=")
    value = value or next((following for following in behind[:1] if not following.startswith("-")), "...")
    name = name.replace("-", "_")
    meant = [key for key in settings if key == name] or [key for key in settings if key.endswith(f".{name}")]
    return f"A setting has no hyphens: {' or '.join(f'{key}={value}' for key in sorted(meant))}." if meant else ""


def refuse_ranks(command: str) -> None:
    """UserError under torchrun, which starts several processes that would all write the same files."""
    if (count := n_processes()) > 1:
        raise UserError(
            "distributed",
            f"`efftx {command}` is one process, and WORLD_SIZE={count} says that {count} were started.",
            "Start it without torchrun (or unset WORLD_SIZE); `efftx train` alone is started by it.",
        )

"""The words behind a command: what is said of overrides, which flags there are, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

from efftx.core.ranks import n_processes
from efftx.errors import UserError, nearest

OVERRIDES = """Overrides are key=value words, such as
  efftx train model=reformer data=enwik8 lsh.n_hashes=4
`efftx train --cfg job` shows every key (--package lsh only one node);
--info all and --hydra-help are Hydra's."""

HYDRA_FLAGS = (
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--hydra-help",
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
}


def refuse_flags(words: Sequence[str], known: Sequence[str] = ()) -> None:
    """UserError, with the nearest known one, for a word that begins with a hyphen."""
    for word in words:
        if word.startswith("-"):
            flag = word.split("=", 1)[0]
            instead = next((told for flags, told in _INSTEAD.items() if flag in flags), "")
            raise UserError("bad_command", f"There is no option '{word}' here.", instead or nearest(flag, known))


def refuse_ranks(command: str) -> None:
    """UserError under torchrun, which starts several processes that would all write the same files."""
    if (count := n_processes()) > 1:
        raise UserError(
            "distributed",
            f"`efftx {command}` is one process, and WORLD_SIZE={count} says that {count} were started.",
            "Start it without torchrun (or unset WORLD_SIZE); `efftx train` alone is started by it.",
        )

"""`--cfg`, `--info` and shell completion: what a command's overrides compose to, shown by Hydra or as JSON."""

from __future__ import annotations

import argparse

from efftx.commands.outcome import Outcome
from efftx.errors import UserError


def configurations(command: str, arguments: argparse.Namespace, words: list[str]) -> Outcome:
    """`--cfg` with `--json`: the resolved configuration, one a point in an ablation."""
    _refuse_without_configuration(command)

    from efftx.config import compose, expand_sweeps, hydra_words, to_dict

    flags, overrides = hydra_words(words)
    if not {"--cfg", "-c"} & set(flags):
        raise UserError("bad_command", f"{flags[0]} is Hydra's own and prints no JSON.", "Leave --json out.")
    points = expand_sweeps(overrides) if command == "ablate" else [overrides]
    found = [
        {"overrides": point, "config": to_dict(compose(point, config_dirs=arguments.config_dir))} for point in points
    ]
    return Outcome({"configurations": found}, lambda console: None)


def hand_to_hydra(command: str, arguments: argparse.Namespace, words: list[str]) -> int:
    """Hydra's own answer to its flags; an ablation shows one configuration a point."""
    _refuse_without_configuration(command)

    from efftx.config import compose, expand_sweeps, hydra_words, run_hydra

    flags, overrides = hydra_words(words)
    if {"--package", "-p", "--resolve"} & set(flags) and not {"--cfg", "-c"} & set(flags):
        raise UserError("bad_command", f"{flags[0]} says how to show a configuration.", "Put `--cfg job` beside it.")
    for point in expand_sweeps(overrides) if command == "ablate" else [overrides]:
        if "--shell-completion" not in flags and "-sc" not in flags:
            compose(point, config_dirs=arguments.config_dir)
        if command == "ablate":
            print(f"# {' '.join(point)}")
        run_hydra([*flags, *point], arguments.config_dir)
    return 0


def _refuse_without_configuration(command: str) -> None:
    if command not in ("train", "ablate", "plan"):
        raise UserError("bad_command", f"`efftx {command}` composes no configuration.", "Use `efftx train`.")

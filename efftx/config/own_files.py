"""The user's own configuration files, looked at before Hydra reads them: it answers a slip of YAML with a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from efftx.core.yaml_files import read_yaml_file

DEFAULTS = {"model": "terraformer", "data": "stdlib", "size": "cpu"}
"""What conf/train.yaml chooses where nothing else is said."""


def check_own_files(choices: Mapping[str, str], config_dirs: Iterable[str | Path]) -> None:
    """Raises UserError, with file and line, for a chosen file of `config_dirs` that is not plain YAML.

    `choices` are those of model, data, size and preset that the command line makes. The files that a chosen one names
    in its defaults are looked at too; others in the folder are not.
    """
    chosen = DEFAULTS | dict(choices)
    chosen.setdefault("preset", f"{chosen['model']}/{chosen['size']}")
    for folder in map(Path, config_dirs):
        waiting = [folder / group / f"{name}.yaml" for group, name in chosen.items()]
        seen: set[Path] = set()
        while waiting:
            file = waiting.pop()
            if file in seen or not file.exists():
                continue
            seen.add(file)
            _, content = read_yaml_file(file, "bad_config_file")
            defaults = content.get("defaults")
            for entry in defaults if isinstance(defaults, list) else ():
                for group, name in entry.items() if isinstance(entry, dict) else [("", entry)]:
                    words = re.sub(r"^(?:(?:optional|override)\s+)+", "", f"{group}").partition("@")[0]
                    base = folder if words.startswith("/") else file.parent
                    waiting += [base / words.strip("/") / f"{one}.yaml" for one in _entries(name)]


def _entries(name: Any) -> list[str]:
    return [str(one).partition("@")[0].strip("/") for one in (name if isinstance(name, list) else [name])]

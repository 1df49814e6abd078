"""Where the files lie that come with the package: the configuration tree and the experiments."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(name: str) -> Path:
    """The folder `conf` or `experiments`: inside an installed wheel, or beside the package in a checkout."""
    for folder in (_PACKAGE / f"_{name}", _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"The installation of efftx lacks its folder '{name}'.")

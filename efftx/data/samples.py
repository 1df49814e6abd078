"""Samples of text that ship with the package, so that every experiment runs without a download; and where files lie.

The texts in `samples/` were written for efftx and share its licence; the photographs have their own. A score on them
says nothing but that all works.
"""

from __future__ import annotations

from pathlib import Path

from efftx.data.dataset import DataConfig, find_source, refuse_path
from efftx.data.prepared import data_root
from efftx.data.text_files import find_files, kind_of, local_path
from efftx.errors import UserError, nearest

PREFIX = "efftx:samples/"
LICENCE = "Apache-2.0, written for efftx"
PHOTOS_LICENCE = "public domain and CC0; samples/photos/LICENCE.txt names the photographers"
_FOLDER = Path(__file__).parent / "samples"


def is_sample(path: str | None) -> bool:
    """Whether `data.path` means the package's own files: `efftx:` and a name."""
    return path is not None and path.startswith("efftx:")


def licence_and_origin(path: str | None, own: str) -> dict[str, str]:
    """What a prepared set keeps of where its files come from: the package's licence, or `own` for a user's files."""
    if not is_sample(path):
        return {"licence": own, "origin": "local files"}
    return {"licence": PHOTOS_LICENCE if path == f"{PREFIX}photos" else LICENCE, "origin": "efftx"}


def resolve_path(path: str | None, name: str) -> Path | None:
    """The file or folder that `data.path` means for the data set `name`; it need not exist.

    `efftx:samples/c4` is a folder inside the package; null is `<data root>/<name>` if that exists, else None.
    `UserError` for samples that the package does not have.
    """
    if path is None:
        usual = data_root() / name
        return usual if usual.exists() else None
    if not is_sample(path):
        return local_path(path)
    known = {f"{PREFIX}{folder.name}" for folder in _FOLDER.iterdir() if folder.is_dir()}
    if path not in known:
        raise UserError("missing_file", f"data.path={path}: efftx has no such samples.", nearest(path, known))
    return _FOLDER / path.removeprefix(PREFIX)


def require_path(config: DataConfig, hint: str) -> str:
    """`data.path`, or the data set's usual place; `UserError` with `hint` where neither is there."""
    if config.path is not None and not is_sample(config.path):
        return config.path
    path = resolve_path(config.path, config.name)
    if path is None:
        message = f"data={config.name} needs files, and {data_root() / config.name} does not exist."
        raise UserError("missing_file", message, hint)
    return str(path)


def find_path(config: DataConfig, hint: str) -> Path:
    """The file or folder that `data.path` means; `UserError` with `hint` where there is none."""
    path = resolve_path(require_path(config, hint), config.name)
    assert path is not None
    if kind_of(path) == "missing":
        raise UserError("missing_file", f"data.path={config.path} does not exist.", hint)
    return path


def check_path(config: DataConfig) -> None:
    """`UserError` where `data.path` is given and nothing lies there, or the data set reads no file; reads none."""
    source = find_source(config.name)
    if config.path is None:
        return
    if source.prepare is None or not source.reads_files:
        refuse_path(config)
    if is_sample(config.path):
        resolve_path(config.path, config.name)
    else:
        find_files(config.path, "Nothing is read of it to plan; the training will want it.")

"""Checkpoints: safetensors and JSON, written whole or not at all, verified on load, bit for bit.

A checkpoint is a directory `step-00001234` with

* `model.safetensors`: the model's tensors; tied ones once, their other names in `state.json`;
* `optimizer.safetensors`: the optimiser's tensors as `<parameter name>.<state key>`;
* `state.json`: the step, the caller's `meta`, the optimiser's plain numbers and parameter groups, the tied names;
* `manifest.json`: size and SHA-256 of the other three. Both carry a checksum of their own.

Where several processes have the tensors in parts, folders `model` and `optimizer` stand in place of the two files, with
a file a process (`efftx.runs.sharded`), and the manifest lists those.

It is written beside its place under a hidden name, forced to the disk, and renamed: a directory with the right name is
complete. Whoever calls holds the run directory's lock, so a hidden leftover belongs to a process that is dead.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from efftx.core import files
from efftx.core.artifact import finite, read_document, write_document
from efftx.core.files import DamagedFileError, file_sha256
from efftx.distributed.processes import ALONE, Processes
from efftx.distributed.wrap import is_sharded
from efftx.errors import UserError
from efftx.runs import sharded
from efftx.runs.optimizer_state import OptimizerState, capture_optimizer

FORMAT, SHARDED_FORMAT = 1, 2
MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
MANIFEST_FILE = "manifest.json"
MODEL_FOLDER, OPTIMIZER_FOLDER = "model", "optimizer"

T = TypeVar("T")

_COMPLETE = re.compile(r"step-(\d{8,})")
_WRITING, _REPLACED = ".writing-", ".replaced-"


@dataclass(frozen=True)
class Checkpoint:
    """What `load_latest` found: the model's tensors (tied names share one tensor), the optimiser's state, the meta."""

    path: Path
    step: int
    model: dict[str, Tensor]
    optimizer: OptimizerState
    meta: dict[str, Any]


# ---- writing ---------------------------------------------------------------------------------------------------------


def save_checkpoint(
    folder: Path,
    step: int,
    model_tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer | OptimizerState,
    meta: dict[str, Any],
    *,
    keep: int = 2,
    processes: Processes = ALONE,
) -> Path:
    """Write the checkpoint of `step` into `folder`, then remove the ones no longer kept; gives its directory.

    `meta` is anything JSON can hold (floats come back exactly, NaN and infinities as None); where `meta["score"]` is a
    number, the checkpoint with the lowest score stays beside the last `keep`. A checkpoint of the same step is
    replaced. Of several `processes` all call this: of sharded tensors each writes its part, of others the leader writes
    them all. On a full disk or a read-only folder: UserError, with nothing half-written and the older checkpoints
    untouched.
    """
    state = optimizer if isinstance(optimizer, OptimizerState) else capture_optimizer(optimizer)
    final = _checkpoint_at(folder, step)
    if any(map(is_sharded, model_tensors.values())):
        _write_sharded(final, step, model_tensors, state, meta, processes)
        with processes.together():
            if processes.leads:
                _remove_old(folder, keep)
        return final

    def write() -> None:
        with _placing(final) as path:
            model, tied = _untie(model_tensors)
            optimizer_tensors, _ = _untie(state.tensors, tie=False)
            save_file(model, path / MODEL_FILE)
            save_file(optimizer_tensors, path / OPTIMIZER_FILE)
            _write_documents(path, _document(FORMAT, step, meta, tied, state), _entries(path, sorted(path.iterdir())))
        _remove_old(folder, keep)

    processes.led(write)
    return final


def save_meta(folder: Path, step: int, meta: dict[str, Any], *, keep: int = 2, processes: Processes = ALONE) -> None:
    """Gives the checkpoint of `step` in `folder` another `meta`, whole or not at all; tensors are not written again.

    Then removes, by the score it may have now, the ones no longer kept. UserError as `save_checkpoint`.
    """
    final = _checkpoint_at(folder, step)

    def write() -> None:
        with _placing(final) as path:
            document, manifest = read_document(final / STATE_FILE), read_document(final / MANIFEST_FILE)
            assert document is not None, "save_checkpoint has written it"
            assert manifest is not None, "and this"
            del manifest[STATE_FILE]
            for name in manifest:
                (path / name).parent.mkdir(exist_ok=True)
                try:
                    os.link(final / name, path / name)
                except OSError:  # a file system without hard links
                    shutil.copy2(final / name, path / name)
            _write_documents(path, {**document, "meta": finite(meta)}, manifest)
        _remove_old(folder, keep)

    processes.led(write)


def _checkpoint_at(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


@contextmanager
def _placing(final: Path) -> Iterator[Path]:
    """A hidden directory to fill, which then takes the place of the checkpoint `final`; UserError where it cannot."""
    folder = final.parent
    temporary = folder / f"{_WRITING}{final.name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clean(folder)
        temporary.mkdir()
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            files.sync(path)
        replaced = folder / f"{_REPLACED}{final.name}"
        if final.exists():
            os.rename(final, replaced)
        os.rename(temporary, final)
        files.sync(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise files.write_error(folder, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_sharded(
    final: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: OptimizerState,
    meta: dict[str, Any],
    processes: Processes,
) -> None:
    first_names: dict[int, str] = {}
    for name, tensor in model.items():
        first_names.setdefault(id(tensor), name)
    tied = {name: first for name, tensor in model.items() if (first := first_names[id(tensor)]) != name}
    parts = {
        MODEL_FOLDER: {name: tensor for name, tensor in model.items() if name not in tied},
        OPTIMIZER_FOLDER: optimizer.tensors,
    }

    with ExitStack() as placing:

        def make() -> Path:
            path = placing.enter_context(_placing(final))
            for name in parts:
                (path / name).mkdir()
            return path

        path = processes.led(make)
        for name, tensors in parts.items():
            sharded.write_parts(path / name, tensors, processes)
        entries: dict[str, Any] = {}
        with processes.together(), files.writing(final.parent):
            entries = _entries(path, [file for name in parts for file in sharded.files_of(path / name, processes.rank)])
            for name in entries:
                files.sync(path / name)
        of_all = {name: entry for each in processes.gather(entries) for name, entry in each.items()}
        with processes.together():
            if processes.leads:
                _write_documents(path, _document(SHARDED_FORMAT, step, meta, tied, optimizer), of_all)
                placing.close()


def _document(
    version: int, step: int, meta: dict[str, Any], tied: dict[str, str], optimizer: OptimizerState
) -> dict[str, Any]:
    numbers_and_groups = {"numbers": optimizer.numbers, "groups": optimizer.groups}
    return {"format": version, "step": step, "meta": finite(meta), "tied": tied, "optimizer": numbers_and_groups}


def _write_documents(path: Path, document: dict[str, Any], entries: dict[str, Any]) -> None:
    """state.json, and the manifest over it and the files of `entries`."""
    write_document(path / STATE_FILE, document)  # JSON writes floats by repr: exact
    write_document(path / MANIFEST_FILE, {**entries, **_entries(path, [path / STATE_FILE])})


def _entries(path: Path, written: Iterable[Path]) -> dict[str, Any]:
    """What the manifest says of files under `path`, by their names from there."""
    return {
        file.relative_to(path).as_posix(): {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in written
    }


def _untie(named: Mapping[str, Tensor], *, tie: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that own their memory, on the CPU, and the other names of those that are one and the same tensor."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first_name: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in named.items():
        tensor = tensor.detach()
        if tensor.numel() > 0:
            pointer = tensor.untyped_storage().data_ptr()
            place = (pointer, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            if tie and place in first_name:
                tied[name] = first_name[place]
                continue
            first_name[place] = name
            if pointer in storages:
                tensor = tensor.clone()  # a view of another one's memory, but not the same tensor
            storages.add(pointer)
        tensors[name] = tensor.cpu().contiguous()
    return tensors, tied


def _remove_old(folder: Path, keep: int) -> None:
    complete = _complete(folder)
    kept = set(complete[-keep:])
    scores = {path: score for path in complete if (score := _score(path)) is not None}
    if scores:
        kept.add(min(scores, key=lambda path: (scores[path], path.name)))
    with files.writing(folder):
        for path in complete:
            if path not in kept:
                # Renamed first: a removal that is killed halfway must not leave a damaged one under a good name.
                doomed = folder / f"{_WRITING}{path.name}-old"
                os.rename(path, doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def _score(path: Path) -> float | None:
    try:
        document = read_document(path / STATE_FILE)
    except UserError:  # damaged: told when it is loaded
        return None
    score = document["meta"].get("score") if document else None
    return float(score) if isinstance(score, int | float) and score == score else None


# ---- reading ---------------------------------------------------------------------------------------------------------


def load_latest(
    folder: Path, *, on_damage: Callable[[str], None] | None = None, read_only: bool = False
) -> Checkpoint | None:
    """The newest intact checkpoint in `folder`, or None where there is none.

    A damaged one is renamed to `step-....damaged`, told to `on_damage` (default: a Python warning), and the one before
    it is taken. Leftovers of a killed writer are removed. `read_only`, for those without the run's lock, changes
    nothing on the disk. Raises UserError where files cannot be read or have another format.
    """
    return _newest(folder, _read_beside_writer if read_only else read_checkpoint, on_damage, read_only)


def find_latest(folder: Path, *, on_damage: Callable[[str], None] | None = None) -> Path | None:
    """Where the checkpoint is that `load_latest` would read, its checksums verified."""

    def verified(path: Path) -> Path:
        _verified(path)
        return path

    return _newest(folder, verified, on_damage, read_only=False)


def _newest(
    folder: Path, read: Callable[[Path], T], on_damage: Callable[[str], None] | None, read_only: bool
) -> T | None:
    tell = on_damage or (lambda text: warnings.warn(text, stacklevel=4))
    if not folder.is_dir():
        return None
    if not read_only:
        with files.writing(folder):
            _clean(folder)
    complete = _complete(folder)
    for i, path in reversed(list(enumerate(complete))):
        try:
            return read(path)
        except DamagedFileError as damage:
            moved = ""
            if not read_only:
                aside = _free_name(path.with_name(f"{path.name}.damaged"))
                with files.writing(folder):
                    os.rename(path, aside)
                moved = f"it is now {aside.name}, and "
            then = "the one before it is used" if i else "none stands before it"
            tell(f"checkpoint {path} is damaged ({damage.path.name}: {damage.why}); {moved}{then}")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, its checksums verified: DamagedFileError, or a UserError as `load_latest` says."""
    document = _verified(path)
    try:
        if document["format"] == SHARDED_FORMAT:
            model, optimizer_tensors = (sharded.read_whole(path / name) for name in (MODEL_FOLDER, OPTIMIZER_FOLDER))
        else:
            model, optimizer_tensors = (load_file(path / name) for name in (MODEL_FILE, OPTIMIZER_FILE))
    except SafetensorError as error:
        raise DamagedFileError(path, str(error)) from error
    except OSError as error:
        raise UserError("cannot_read", f"cannot read checkpoint {path}: {error.strerror}.") from error
    for name, first in document["tied"].items():
        model[name] = model[first]
    saved = document["optimizer"]
    optimizer = OptimizerState(optimizer_tensors, saved["numbers"], saved["groups"])
    return Checkpoint(path, document["step"], model, optimizer, document["meta"])


def read_shards(path: Path, parameters: Mapping[str, Tensor]) -> Checkpoint:
    """As `read_checkpoint`, for a model with these sharded parameters: each process reads its parts of the tensors.

    Whether the checkpoint was written by one process or by any number of them; UserError where the model is another.
    """
    document = _verified(path)
    in_parts = document["format"] == SHARDED_FORMAT
    model_folder, optimizer_folder = (path / name if in_parts else path for name in (MODEL_FOLDER, OPTIMIZER_FOLDER))
    untied = {name: tensor for name, tensor in parameters.items() if name not in document["tied"]}
    missing = sorted(set(untied) - set(sharded.names_in(model_folder)))
    if missing:
        raise UserError(
            "other_model", f"Only the model has the weight '{missing[0]}'.", "The two must be the same model."
        )
    model = sharded.read_like(model_folder, untied)
    state_names = [name for name in sharded.names_in(optimizer_folder) if name.rpartition(".")[0] in untied]
    of_optimizer = sharded.read_like(optimizer_folder, {name: untied[name.rpartition(".")[0]] for name in state_names})
    saved = document["optimizer"]
    return Checkpoint(
        path, document["step"], model, OptimizerState(of_optimizer, saved["numbers"], saved["groups"]), document["meta"]
    )


def _read_beside_writer(path: Path) -> Checkpoint:
    try:
        return read_checkpoint(path)
    except DamagedFileError:  # or a training has just put another of the same step in its place
        return read_checkpoint(path)


def _verified(path: Path) -> dict[str, Any]:
    """What state.json says, once every file has the size and the checksum of the manifest."""
    manifest = read_document(path / MANIFEST_FILE)
    if manifest is None:
        raise DamagedFileError(path / MANIFEST_FILE, "it is missing")
    for name, entry in manifest.items():
        file, size = path / name, entry["bytes"]
        try:
            checksum = file_sha256(file)
        except FileNotFoundError:
            raise DamagedFileError(file, "it is missing") from None
        if file.stat().st_size != size:
            raise DamagedFileError(file, f"it has {file.stat().st_size} bytes instead of {size}")
        if checksum != entry["sha256"]:
            raise DamagedFileError(file, "it does not have its checksum")
    document = read_document(path / STATE_FILE)
    if document is None:
        raise DamagedFileError(path / STATE_FILE, "it is missing")
    if document["format"] not in (FORMAT, SHARDED_FORMAT):
        raise UserError(
            "other_format",
            f"checkpoint {path} has format {document['format']}, this efftx reads {FORMAT} and {SHARDED_FORMAT}.",
            "Resume with the version of efftx that wrote it.",
        )
    return document


def _complete(folder: Path) -> list[Path]:
    """Directories with the name of a complete checkpoint, oldest step first."""
    steps = {int(match[1]): path for path in folder.iterdir() if (match := _COMPLETE.fullmatch(path.name))}
    return [steps[step] for step in sorted(steps)]


def _clean(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name.startswith(_WRITING):
            shutil.rmtree(path)
        elif path.name.startswith(_REPLACED):
            final = folder / path.name.removeprefix(_REPLACED)
            if final.exists():
                shutil.rmtree(path)
            else:  # killed between the two renames: the old one is still the checkpoint
                os.rename(path, final)


def _free_name(path: Path) -> Path:
    candidate, n = path, 2
    while candidate.exists():
        candidate, n = path.with_name(f"{path.name}-{n}"), n + 1
    return candidate


# ---- fingerprints ----------------------------------------------------------------------------------------------------


def weights_sha256(
    named_tensors: Mapping[str, Tensor], gather: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all tensors, in the order of their names.

    `gather` makes a whole one of a shard; it is called for one tensor after the other, so that one is whole at a time.
    """
    digest = hashlib.sha256()
    for name in sorted(named_tensors):
        tensor = gather(named_tensors[name]).detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

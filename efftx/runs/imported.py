"""Weights of other code: a file of the authors' arrays or a folder of transformers, read and written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from efftx.core.files import placed, writing
from efftx.data.arrays import DAMAGED_ARCHIVE
from efftx.errors import UserError
from efftx.models.author_weights import PREFIX, from_authors
from efftx.models.transformers_weights import from_transformers, overrides_of

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_ELSEWHERE = "give another path"
_BIAS = r"(?:enc\.|dec\.)?layer\d+\.(?:attn\d*|cross)\.(?:q\.bias|qk\.bias|b_.*)"
_SIDE, _LAYER = r"(?:dec\.)?", r"(?:dec\.)?layer\d+\."


@dataclass(frozen=True)
class Imported:
    """Weights under this package's names, what they say of the configuration, and the SHA-256 of their file."""

    weights: dict[str, Tensor]
    overrides: list[str]
    sha256: str


def read_authors(file: Path) -> Imported:
    """The arrays of an .npz whose names begin with `w.`; UserError where it is none, or has other names than theirs."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith(PREFIX)}
    except FileNotFoundError as error:
        raise UserError("missing_file", f"There is no file {file}.") from error
    except (*DAMAGED_ARCHIVE, ValueError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is no .npz of arrays of numbers"
        hint = "Give the .npz of the authors' arrays, under the names that efftx/models/author_weights.py lists."
        raise UserError("damaged_file", f"{file} cannot be read: {why}.", hint) from error
    if not weights:
        raise UserError("other_model", f"{file} holds no array whose name begins with '{PREFIX}'.")
    _refuse_not_finite(weights, file)
    return Imported(from_authors(weights), architecture_of(weights), _sha256(file))


def architecture_of(arrays: Mapping[str, Tensor]) -> list[str]:
    """What the shapes of the authors' arrays say of the configuration, as overrides.

    They do not say which kind of attention it was nor how it hashed, how many heads a dense layer has, whether an
    encoder-decoder was reversible, nor the activation. What is sparse in a family by default, and not here, is off.
    """
    shapes = {name.removeprefix(PREFIX): tuple(array.shape) for name, array in arrays.items()}

    def first(pattern: str) -> tuple[int, ...] | None:
        return next((shape for name, shape in shapes.items() if re.fullmatch(pattern, name)), None)

    def count(pattern: str) -> int:
        return 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)

    words: dict[str, Any] = {"n_layers": count(_SIDE + r"layer(\d+)\.")}
    n_encoder = count(r"enc\.layer(\d+)\.")
    if n_encoder:
        crosses = first(_LAYER + r"cross\..*") is not None
        words |= {"stack": "encoder_decoder" if crosses else "concatenated", "n_encoder_layers": n_encoder}
        words["attention_per_block"] = max(1, count(_LAYER + r"attn(\d+)\."))
    if embedding := first("embedding"):
        words["d_model"] = embedding[1]
    if per_head := first(_LAYER + r"attn\d*\.w_(?:q|qk)"):
        words |= {"n_heads": per_head[0], "d_head": per_head[2]}
    words["attention_bias"] = first(_BIAS) is not None
    if first(_LAYER + r"attn\d*\.(?:w_q|q\.kernel|conv_q\.kernel)"):
        words["share_qk"] = False
    # What a family has by default and these arrays have not is off.
    words |= dict.fromkeys(("sparse_ff.N", "sparse_qkv.S", "sparse_loss.S", "sru.n_layers"), 0)
    if dense := first(_LAYER + r"ff\.w1"):
        words["d_ff"] = dense[1]
    if units := first(_LAYER + r"ff\.main\.w1"):
        words |= {"d_ff": units[1] * units[2], "sparse_ff.N": units[2]}
    if controller := first(_LAYER + r"ff\.controller\.m1"):
        words["sparse_ff.rank"] = f"'{controller[1]}'"
    if gate := first(_LAYER + r"attn\d*\.mult\.gate"):
        words["sparse_qkv.S"] = gate[0]
    if kernel := first(_LAYER + r"attn\d*\.conv_(?:q|qk)\.kernel"):
        words["sparse_qkv.F"] = kernel[0]
    if loss := first(r"loss\.gate"):
        words["sparse_loss.S"] = loss[0]
    if into := first(_LAYER + r"ff\.sru_in\.kernel"):
        words |= {"sru.n_layers": count(_LAYER + r"ff\.sru(\d+)\."), "sru.d": into[1]}
    if table := first(_SIDE + r"pos\.table"):
        words["positions.kind"] = "learned"
        of_encoder = first(r"enc\.pos\.table") or table
        # Tables of their own lengths are those of the data's rows.
        words |= {"positions.max_len": table[-2]} if of_encoder == table else {"data.length": of_encoder[-2]}
    elif axes := [shape for name, shape in shapes.items() if re.fullmatch(_SIDE + r"pos\.axis\d+", name)]:
        words |= {"positions.kind": "axial", "positions.axial_shape": [max(shape[:-1]) for shape in axes]}
        words["positions.axial_dims"] = [shape[-1] for shape in axes]
        words["data.length"] = prod(words["positions.axial_shape"])
    elif first(_SIDE + r"pos\.start_vec"):
        words |= {"positions.kind": "digits", "positions.n_digits": count(_SIDE + r"pos\.base0\.digit(\d+)")}
    if (kernel := first(r"loss\.kernel")) and embedding and kernel[0] == 2 * embedding[1]:
        words |= {"reversible.enabled": "true", "reversible.merge": "concat"}
    if first(r"enc\.out\.kernel"):
        words |= {"reversible.enabled": "true", "reversible.encoder": "merged"}
    return [f"{key}={_word(value)}" for key, value in words.items()]


def read_transformers(folder: Path, first_token: int = 0) -> Imported:
    """The weights and configuration of a folder that transformers wrote; UserError where it is none, or of another
    model, or holds pickles alone: they are never opened.
    """
    if not (folder / CONFIG).is_file():
        hint = f"Give the folder that `save_pretrained` wrote: {CONFIG} and {WEIGHTS}."
        raise UserError("missing_file", f"{folder} is no folder of transformers: it has no {CONFIG}.", hint)
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt"))
        held = f"holds its weights as a pickle alone, {pickles[0]}" if pickles else f"has no {WEIGHTS}"
        hint = (
            "A pickle can run any program, so that it is not opened. Convert it where you trust it:"
            f" ReformerModelWithLMHead.from_pretrained('{folder}').save_pretrained('{folder}', safe_serialization=True)"
        )
        raise UserError("missing_file", f"{folder} {held}.", hint)
    try:
        theirs = json.loads((folder / CONFIG).read_text())
        arrays = {name: array.float() for name, array in load_file(folder / WEIGHTS).items()}
    except (ValueError, OSError, SafetensorError) as error:
        raise UserError("damaged_file", f"{folder} cannot be read: {error}") from error
    _refuse_not_finite(arrays, folder / WEIGHTS)
    if not isinstance(theirs, dict):
        raise UserError("damaged_file", f"{folder / CONFIG} is no JSON object.")
    digest = hashlib.sha256(f"{_sha256(folder / WEIGHTS)} {first_token}".encode()).hexdigest()
    return Imported(from_transformers(arrays, first_token), overrides_of(theirs), digest)


def _refuse_not_finite(arrays: Mapping[str, Tensor], file: Path) -> None:
    broken = (name for name, array in arrays.items() if not bool(torch.isfinite(array).all()))
    if (name := next(broken, None)) is not None:
        raise UserError(
            "damaged_file", f"{file}: the array '{name}' holds a NaN or an infinity.", "No model can use it."
        )


def write_authors(file: Path, arrays: Mapping[str, Tensor]) -> None:
    """An .npz of arrays under the authors' names; a file that is there is replaced."""
    with writing(file, _ELSEWHERE), placed(file) as opened:
        np.savez(opened, **{name: array.numpy() for name, array in arrays.items()})  # type: ignore[arg-type]


def write_transformers(folder: Path, theirs: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> None:
    """A folder that `ReformerModelWithLMHead.from_pretrained` reads."""
    is_new = not folder.exists()
    try:
        with writing(folder, _ELSEWHERE):
            folder.mkdir(parents=True, exist_ok=True)
            # Both are written before either is there: an export that fails leaves an earlier one as it was.
            with placed(folder / CONFIG) as config, placed(folder / WEIGHTS) as weights:
                weights.write(save(dict(arrays), metadata={"format": "pt"}))
                config.write((json.dumps(theirs, indent=1) + "\n").encode())
    except UserError:
        if is_new:
            with suppress(OSError):  # not made, or no longer empty
                folder.rmdir()
        raise


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _word(value: Any) -> str:
    return str(value).replace(" ", "").lower() if isinstance(value, list | bool) else str(value)

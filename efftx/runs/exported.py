"""The last weights of a run in the form of the authors' code or of transformers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from efftx.config.compose import from_dict
from efftx.config.schema import Config
from efftx.errors import UserError
from efftx.models.author_weights import to_authors
from efftx.models.transformers_weights import config_for, to_transformers
from efftx.models.weight_rules import Shapes
from efftx.runs.ema import evaluated_weights
from efftx.runs.imported import write_authors, write_transformers
from efftx.runs.pretrained import final_checkpoint
from efftx.runs.run_directory import stored_config


def export_authors(run: Path, file: Path) -> list[str]:
    """Writes an .npz of the authors' arrays; their names. UserError for a weight that their code has not."""
    if file.suffix != ".npz":
        raise UserError("bad_value", f"{file} must end in .npz.", f"Call it {file.name or 'weights'}.npz.")
    config, weights = _trained(run)
    arrays = to_authors(weights, Shapes(config.n_heads, config.sparse_ff.N or 1))
    write_authors(file, arrays)
    return sorted(arrays)


def export_transformers(run: Path, folder: Path) -> list[str]:
    """Writes a folder for `ReformerModelWithLMHead.from_pretrained`; the names of its arrays.

    UserError for a model that theirs cannot be.
    """
    config, weights = _trained(run)
    theirs = config_for(config, weights["embedding.weight"].shape[0])
    arrays = to_transformers(weights)
    write_transformers(folder, theirs, arrays)
    return sorted(arrays)


def _trained(run: Path) -> tuple[Config, dict[str, Tensor]]:
    config = from_dict(stored_config(run)[0])
    return config, dict(evaluated_weights(final_checkpoint(run), config.ema.decay))

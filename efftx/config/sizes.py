"""How wide the feed-forward layers are: as given, as the authors chose, or so that the whole model keeps its size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from efftx.config.schema import Config
from efftx.errors import UserError

AUTHORS_D_FF = {(1024, 4096): 6144, (9216, 40_960): 65_536}
"""(d_model, d_ff) of a dense model -> the authors' d_ff where sparse QKV saves the projections (authors' configs)."""
TOLERANCE = 0.01
"""How far, as a share, a model of `d_ff_rule=equal` may be from its dense counterpart without a note."""


def resolved_d_ff(config: Config, count: Callable[[Config], int]) -> int:
    """The width of every feed-forward layer of `config`; `count` gives the parameters of a configuration's model.

    `given` is d_ff itself; `authors` their explicit size, where queries, keys and values are sparse; `equal` the
    multiple of N whose model is nearest in parameters to the dense one of width d_ff: that without sparse_ff,
    sparse_qkv, sparse_loss and sru. `unequal` says how near that is. Raises UserError where the authors name no size.
    """
    if config.d_ff_rule == "given":
        return config.d_ff
    if config.d_ff_rule == "authors":
        return authors_d_ff(config)
    target = count(dense_counterpart(config))
    step = max(config.sparse_ff.N, 1)

    def size(multiple: int) -> int:
        return count(_with_d_ff(config, multiple * step))

    low, high = 1, 2
    while size(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= target else (low, middle)
    return step * min((low, high), key=lambda multiple: abs(size(multiple) - target))


def unequal(config: Config, n_parameters: int, n_dense: int) -> str | None:
    """What to tell where `d_ff_rule=equal` found no width within 1 % of the dense model's parameters, else None."""
    off = n_parameters / n_dense - 1
    if config.d_ff_rule != "equal" or abs(off) <= TOLERANCE:
        return None
    step = f" in steps of sparse_ff.N={config.sparse_ff.N}" if config.sparse_ff.N > 1 else ""
    return f"d_ff_rule=equal: the nearest d_ff{step} gives the model {off:+.1%} of the dense one's parameters"


def authors_d_ff(config: Config) -> int:
    """The authors' explicit size where queries, keys and values are sparse; UserError where they name none."""
    if not config.sparse_qkv.S:
        return config.d_ff
    key = (config.d_model, config.d_ff)
    if key not in AUTHORS_D_FF:
        known = ", ".join(f"d_model={d_model} d_ff={d_ff}" for d_model, d_ff in AUTHORS_D_FF)
        raise UserError(
            "bad_value",
            f"d_ff_rule=authors: they name no d_ff for d_model={config.d_model} and d_ff={config.d_ff}.",
            f"They do for {known}; d_ff_rule=equal solves it for any size.",
        )
    return AUTHORS_D_FF[key]


def _with_d_ff(config: Config, d_ff: int) -> Config:
    return dataclasses.replace(config, d_ff=d_ff, d_ff_rule="given")


def is_sparse(config: Config) -> bool:
    """Whether a layer stands in place of, or beside, one of the dense model's."""
    return bool(config.sparse_ff.N or config.sparse_qkv.S or config.sparse_loss.S or config.sru.n_layers)


def dense_counterpart(config: Config) -> Config:
    """The configuration of width d_ff as given, with sparse_ff, sparse_qkv, sparse_loss and sru switched off."""
    return dataclasses.replace(
        config,
        d_ff_rule="given",
        sparse_ff=dataclasses.replace(config.sparse_ff, N=0),
        sparse_qkv=dataclasses.replace(config.sparse_qkv, S=0),
        sparse_loss=dataclasses.replace(config.sparse_loss, S=0),
        sru=dataclasses.replace(config.sru, n_layers=0),
    )

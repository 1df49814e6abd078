"""FLOPs and kept numbers of sparse projections (`sparse_qkv`), a token, counted from their shapes.

Legend: d d_model, S modules, M = d / S, F positions and K modules of a kernel, L length, r rank. Forward, a token:

    multiplicative   2 d^2: the factors are multiplied out, or the tokens copied, at the same cost
    convolution      2 d M F K (L + F - 1) / L: the last F - 1 outputs are computed and cut off
    modular          2 d M
    low_rank         4 d r
    dense            2 d^2
"""

from __future__ import annotations

from efftx.layers.sparse_qkv_maps import CODE_MODULES, SparseQKVConfig


def sparse_qkv_flops(config: SparseQKVConfig, d_model: int, length: int, *, share_qk: bool) -> float:
    """Forward FLOPs a token of the shared layer, queries, keys, values and the output."""
    n_query_key = 1 if share_qk and not config.average_qk else 2
    total = n_query_key * _map_flops(config, d_model, length) + _map_flops(config, d_model, length, of_values=True)
    if config.variant == "multiplicative_convolution":
        total += _dense(d_model)
    for part in parts_of_output(config):
        total += _convolution(config, d_model, length) if part == "convolution" else _dense(d_model)
    return total


def query_flops(config: SparseQKVConfig, d_model: int, length: int) -> float:
    """Forward FLOPs a token of cross-attention's sparse query, which has no output projection."""
    return _dense(d_model) + _convolution(config, d_model, length)


def parts_of_output(config: SparseQKVConfig) -> list[str]:
    """The layers after attention, in order."""
    words = {"none": [], "multiplicative_convolution": ["multiplicative", "convolution"]}
    return words.get(config.output, [config.output])


def n_matrices(config: SparseQKVConfig, *, share_qk: bool) -> int:
    """Matrices (d, d) of multiplicative layers that are multiplied out, and so kept for the backward pass."""
    maps = 2 if share_qk and not config.average_qk else 3
    own = {"multiplicative_convolution": 1, "multiplicative": maps}.get(config.variant, 0)
    return own + parts_of_output(config).count("multiplicative")


def _map_flops(config: SparseQKVConfig, d_model: int, length: int, *, of_values: bool = False) -> float:
    if config.variant in ("multiplicative_convolution", "convolution"):
        return _convolution(config, d_model, length, of_values=of_values)
    if config.variant == "multiplicative":
        return _dense(d_model)
    if config.variant == "modular":
        return _dense(d_model) / config.S
    return 4.0 * d_model * (config.rank or d_model // config.S)


def _convolution(config: SparseQKVConfig, d_model: int, length: int, *, of_values: bool = False) -> float:
    n_modules = config.F if config.kernel == "paper" else 1 if of_values else CODE_MODULES
    inputs = 2 if of_values and config.concat_input else 1
    return inputs * _dense(d_model) / config.S * config.F * n_modules * (length + config.F - 1) / length


def _dense(d_model: int) -> float:
    return 2.0 * d_model * d_model

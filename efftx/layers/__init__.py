"""The layers of the three papers, each a module of its own: `from efftx.layers import LSHAttention, initialized`.

A layer starts with the weights that its authors draw; `initialized` draws them anew from a seed. Names are imported
when they are asked for, so that a configuration, which reads the settings alone, needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efftx.layers.attention import SoftmaxAttention as SoftmaxAttention
    from efftx.layers.attention_settings import FixedConfig as FixedConfig
    from efftx.layers.attention_settings import FullConfig as FullConfig
    from efftx.layers.attention_settings import LocalConfig as LocalConfig
    from efftx.layers.attention_settings import LSHConfig as LSHConfig
    from efftx.layers.attention_settings import StridedConfig as StridedConfig
    from efftx.layers.feedforward import FeedForward as FeedForward
    from efftx.layers.initialize import initialized as initialized
    from efftx.layers.lsh import LSHAttention as LSHAttention
    from efftx.layers.patterns import make_pattern as make_pattern
    from efftx.layers.projections import DenseQKV as DenseQKV
    from efftx.layers.settings import SparseFFConfig as SparseFFConfig
    from efftx.layers.settings import SparseQKVConfig as SparseQKVConfig
    from efftx.layers.settings import SRUConfig as SRUConfig
    from efftx.layers.sparse_ff import SparseFF as SparseFF
    from efftx.layers.sparse_qkv import SparseQKV as SparseQKV
    from efftx.layers.sru import SRUBranch as SRUBranch

_MODULES = {
    "attention": ("SoftmaxAttention",),
    "attention_settings": ("FixedConfig", "FullConfig", "LSHConfig", "LocalConfig", "StridedConfig"),
    "feedforward": ("FeedForward",),
    "initialize": ("initialized",),
    "lsh": ("LSHAttention",),
    "patterns": ("make_pattern",),
    "projections": ("DenseQKV",),
    "settings": ("SRUConfig", "SparseFFConfig", "SparseQKVConfig"),
    "sparse_ff": ("SparseFF",),
    "sparse_qkv": ("SparseQKV",),
    "sru": ("SRUBranch",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'efftx.layers' has no attribute '{name}'")
    return getattr(importlib.import_module(f"efftx.layers.{_MODULE_OF[name]}"), name)

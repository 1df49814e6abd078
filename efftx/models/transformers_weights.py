"""Reformer language models of the transformers library, `ReformerModelWithLMHead`: names and configuration.

Layouts are those of `torch.nn.Linear` on both sides. Their model reads token t to predict token t + 1, ours shifts its
input right by one: fed alike, the logits are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt, prod
from typing import Any

from torch import Tensor

from efftx.config.schema import Config
from efftx.errors import UserError
from efftx.models.weight_rules import Layout, Rule, Shapes, read, write
from efftx.ops.lsh_hashing import auto_buckets

WHOSE = "transformers' Reformer"
_BIAS, _BIAS_USED = "lm_head.bias", "lm_head.decoder.bias"
"""Two names of one tensor; where a file holds both, their model computes with the second."""


def _grid(table: Tensor, shapes: Shapes) -> Tensor:
    sizes = [1] * shapes.n_axes
    sizes[shapes.axis] = table.shape[0]
    return table.reshape(*sizes, table.shape[1])


_AXIS = Layout((2, 3, 4, 5), lambda w: w.reshape(-1, w.shape[-1]), _grid)
_LAYER, _EMBEDDINGS = "reformer.encoder.layers.{i}.", "reformer.embeddings."
_BOTH = ("weight", "bias")
_RULES = (
    Rule(_EMBEDDINGS + "word_embeddings.weight", "embedding.weight"),
    Rule(_EMBEDDINGS + "position_embeddings.embedding.weight", "positions.table"),
    Rule(_EMBEDDINGS + "position_embeddings.weights.{i}", "positions.tables.{i}", _AXIS),
    Rule(_LAYER + "attention.layer_norm.{x}", "blocks.{i}.attention.norm.{x}", x=_BOTH),
    *(
        Rule(_LAYER + f"attention.self_attention.{theirs}.weight", f"blocks.{{i}}.attention.core.project.{ours}.weight")
        for theirs, ours in (("query_key", "qk"), ("query", "q"), ("key", "k"), ("value", "v"))
    ),
    Rule(_LAYER + "attention.output.dense.weight", "blocks.{i}.attention.core.project.o.weight"),
    Rule(_LAYER + "feed_forward.layer_norm.{x}", "blocks.{i}.feedforward.norm.{x}", x=_BOTH),
    Rule(_LAYER + "feed_forward.dense.dense.{x}", "blocks.{i}.feedforward.core.layers.w1.{x}", x=_BOTH),
    Rule(_LAYER + "feed_forward.output.dense.{x}", "blocks.{i}.feedforward.core.layers.w2.{x}", x=_BOTH),
    Rule("reformer.encoder.layer_norm.{x}", "head.norm.{x}", x=_BOTH),
    Rule("lm_head.decoder.weight", "head.linear.weight"),
    Rule(_BIAS, "head.linear.bias"),
)
_ACTIVATIONS = {"relu": "relu", "gelu_new": "gelu", "gelu_fast": "gelu", "gelu_pytorch_tanh": "gelu"}


def from_transformers(arrays: Mapping[str, Tensor], first_token: int = 0) -> dict[str, Tensor]:
    """Their weights under this package's names; UserError as `weight_rules.read`.

    The first `first_token` entries of their vocabulary are left out: google/reformer-enwik8 calls byte b token b + 2.
    """
    once = {name: array for name, array in arrays.items() if name != _BIAS_USED}
    if _BIAS_USED in arrays:
        once[_BIAS] = arrays[_BIAS_USED]
    weights = read(_RULES, once, WHOSE)
    for name in ("embedding.weight", "head.linear.weight", "head.linear.bias"):
        if name in weights:
            weights[name] = weights[name][first_token:]
    return weights


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights under their names; UserError for one that theirs has not."""
    arrays = write(_RULES, weights, Shapes(), WHOSE)
    return {**arrays, _BIAS_USED: arrays[_BIAS].clone()}


def overrides_of(theirs: Mapping[str, Any]) -> list[str]:
    """The configuration here of what their config.json describes; UserError, naming a key, for what is not built here.

    Training's own settings are not read. Attention across buckets and pairs found in several rounds are theirs, as of
    the authors' later code.
    """
    if theirs.get("model_type") != "reformer":
        what = f"of model_type={theirs.get('model_type')}"
        raise UserError("other_model", f"This is no Reformer of transformers: its config.json is {what}.")
    wanted = {"is_decoder": True, "local_num_chunks_after": 0, "lsh_num_chunks_after": 0, "tie_word_embeddings": False}
    wanted |= {"local_num_chunks_before": 1, "lsh_num_chunks_before": 1}
    for key, value in wanted.items():
        if theirs.get(key, value) != value:
            raise UserError("other_model", f"Its {key} is {theirs[key]}; only {value} is built here.")
    activation = _ACTIVATIONS.get(theirs.get("hidden_act", "relu"))
    if activation is None:
        known = ", ".join(_ACTIVATIONS)
        raise UserError("other_model", f"Its hidden_act is {theirs['hidden_act']}; here there are {known}.")
    kinds = _given(theirs, "attn_layers")
    if not isinstance(kinds, list) or not kinds:
        raise UserError("other_model", f"Its attn_layers is {kinds}; a kind of attention for each layer is wanted.")
    words = [
        "model=reformer",
        f"n_layers={len(kinds)}",
        f"d_model={_given(theirs, 'hidden_size')}",
        f"d_ff={_given(theirs, 'feed_forward_size')}",
        f"n_heads={_given(theirs, 'num_attention_heads')}",
        f"d_head={_given(theirs, 'attention_head_size')}",
        f"activation={activation}",
        f"attention={_list(_cycle(kinds))}",
        "share_qk=false",
        "tie_embeddings=false",
        f"norm_eps={_given(theirs, 'layer_norm_eps')}",
        "reversible.enabled=true",
        "reversible.merge=concat",
        f"chunking.ff={theirs.get('chunk_size_feed_forward') or 0}",
        f"chunking.loss={theirs.get('chunk_size_lm_head') or 0}",
    ]
    axial = theirs.get("axial_pos_embds", True)
    length = prod(_given(theirs, "axial_pos_shape")) if axial else _given(theirs, "max_position_embeddings")
    if "lsh" in kinds:
        chunk_len = _given(theirs, "lsh_attn_chunk_length")
        buckets = theirs.get("num_buckets") or _their_buckets(
            length, chunk_len, theirs.get("max_position_embeddings", _LONGEST)
        )
        words += [
            f"lsh.n_hashes={_given(theirs, 'num_hashes')}",
            f"lsh.n_buckets={_list([buckets] if isinstance(buckets, int) else buckets)}",
            f"lsh.chunk_len={chunk_len}",
            f"lsh.full_below={chunk_len}",
            "lsh.attend_across_buckets=true",
            "lsh.allow_duplicates=true",
        ]
    if "local" in kinds:
        words.append(f"local.chunk_len={_given(theirs, 'local_attn_chunk_length')}")
    words.append(f"data.length={length}")
    if not axial:
        return [*words, "positions.kind=learned", f"positions.max_len={length}"]
    grid, dims = (_list(_given(theirs, key)) for key in ("axial_pos_shape", "axial_pos_embds_dim"))
    return [*words, "positions.kind=axial", f"positions.axial_shape={grid}", f"positions.axial_dims={dims}"]


_LONGEST = 4096
"""max_position_embeddings where their config.json leaves it out, as it does of a default."""


def _their_buckets(length: int, chunk_len: int, longest: int) -> list[int]:
    """What transformers sets where num_buckets is null, for rows of the greatest length: a power of 2, or two."""
    power = (2 * max(1, length // chunk_len)).bit_length() - 1
    if 2**power <= 2 * max(isqrt(longest // chunk_len), chunk_len):
        return [2**power]
    return [2 ** (power // 2), 2 ** (power - power // 2)]


def config_for(config: Config, vocab_size: int) -> dict[str, Any]:
    """What their config.json says of such a model; UserError, with the overrides that would fit, where none can."""
    lsh, local = config.lsh, config.local
    kinds = [config.attention[i % len(config.attention)] for i in range(config.n_layers)]
    uses_lsh, uses_local = "lsh" in kinds, "local" in kinds
    needs = {
        "stack=decoder": config.stack == "decoder",
        "attention=[local,lsh]": set(kinds) <= {"local", "lsh"},
        "attention_per_block=1": config.attention_per_block == 1,
        "attention_bias=false": not config.attention_bias,
        # Hash attention shares queries and keys whatever the key says.
        "share_qk=false": not (config.share_qk and uses_local),
        "d_qk=null": config.d_qk is None,
        "tie_embeddings=false": not config.tie_embeddings,
        "activation=relu": config.activation in ("relu", "gelu"),
        "reversible.enabled=true": config.reversible.enabled,
        "reversible.merge=concat": config.reversible.merge == "concat",
        "positions.kind=learned": config.positions.kind in ("axial", "learned"),
        "positions.before_shift=false": not config.positions.before_shift,
        "lsh.attend_across_buckets=true": not uses_lsh or config.lsh.attend_across_buckets,
        "lsh.allow_duplicates=true": not uses_lsh or config.lsh.allow_duplicates,
        # Theirs hashes every row that is longer than a chunk.
        "lsh.full_below=0": not (uses_lsh and lsh.chunk_len < config.data.length <= lsh.full_below),
        "lsh.hashing=angular": not uses_lsh or config.lsh.hashing == "angular",
        "local.window=0": not (uses_local and config.local.window),
    }
    missing = [word for word, fits in needs.items() if not fits]
    if missing:
        message = "transformers has no Reformer like this model."
        raise UserError("other_model", message, f"One that is trained with {' '.join(missing)} can be exported.")
    axial = config.positions.kind == "axial"
    # Left out, they would be counted by another rule, from the first row that the model meets.
    buckets = list(lsh.n_buckets) or auto_buckets(config.data.length, lsh.chunk_len)
    settings = {
        "architectures": ["ReformerModelWithLMHead"],
        "model_type": "reformer",
        "is_decoder": True,
        "attn_layers": kinds,
        "hidden_size": config.d_model,
        "feed_forward_size": config.d_ff,
        "num_attention_heads": config.n_heads,
        "attention_head_size": config.width_of_head,
        "hidden_act": "gelu_new" if config.activation == "gelu" else "relu",
        "layer_norm_eps": config.norm_eps,
        "vocab_size": vocab_size,
        "tie_word_embeddings": False,
        "hidden_dropout_prob": config.dropout,
        "local_attention_probs_dropout_prob": config.attention_dropout,
        "lsh_attention_probs_dropout_prob": config.attention_dropout,
        "chunk_size_feed_forward": config.chunking.ff,
        "chunk_size_lm_head": config.chunking.loss,
        "num_hashes": lsh.n_hashes,
        "num_buckets": buckets[0] if len(buckets) == 1 else buckets,
        "lsh_attn_chunk_length": lsh.chunk_len,
        "local_attn_chunk_length": local.chunk_len,
        "axial_pos_embds": axial,
        "dtype": "float32",
    }
    if not axial:
        return {**settings, "max_position_embeddings": config.positions.max_len or config.data.length}
    shape, dims = config.positions.axial_shape, config.positions.axial_dims
    return {**settings, "axial_pos_shape": shape, "axial_pos_embds_dim": dims, "max_position_embeddings": prod(shape)}


def _given(theirs: Mapping[str, Any], key: str) -> Any:
    """What their config.json says of `key`; UserError where it says nothing, or null."""
    if theirs.get(key) is None:
        raise UserError("other_model", f"This is no whole Reformer of transformers: its config.json is without {key}.")
    return theirs[key]


def _cycle(kinds: list[str]) -> list[str]:
    """The shortest list of which `kinds` is the repetition."""
    n = next(n for n in range(1, len(kinds) + 1) if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))
    return kinds[:n]


def _list(values: Any) -> str:
    return "[" + ",".join(map(str, values)) + "]"

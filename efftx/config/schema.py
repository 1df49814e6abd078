"""The one typed configuration of a run.

A run is one point of a flat space: architecture keys at the root, one node a mechanism, one node a concern of training.
The dataclasses of mechanisms, data sets and optimisers stand beside the code that they configure.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from efftx.config.settings import (
    CheckpointConfig,
    DistributedConfig,
    EvaluationConfig,
    TrackerConfig,
    TrainingConfig,
)
from efftx.data import dataset as data_sets
from efftx.data.dataset import DataConfig
from efftx.layers.attention_settings import (
    AttentionConfig,
    FactoredConfig,
    FixedConfig,
    FullConfig,
    IdentityConfig,
    LocalConfig,
    LSHConfig,
    StridedConfig,
    near_root,
)
from efftx.layers.settings import (
    ChunkingConfig,
    InitConfig,
    PositionsConfig,
    RecomputeConfig,
    ReversibleConfig,
    SparseFFConfig,
    SparseLossConfig,
    SparseQKVConfig,
    SRUConfig,
)
from efftx.optim.settings import EMAConfig, OptimizerConfig, ScheduleConfig


@dataclass
class Config:
    """Everything a run is made of. Root keys are the architecture, then one node a mechanism, then training.

    `stack`: decoder, encoder_decoder (cross-attention) or concatenated (Terraformer: the decoder reads the encoder's
    outputs in front of its own tokens). `objective`: auto is lm for a decoder, and for the others what the data set
    offers, seq2seq pairs or span corruption. `n_layers`: decoder layers, or the only ones; `n_encoder_layers`: as many
    where null. `attention_per_block`: attention sub-layers before each feed-forward of the decoder. `d_ff_rule`: given;
    authors (their explicit sizes where sparse QKV saves weights); equal (d_ff at which the whole model has as many
    parameters as the dense one that `d_ff` describes). `d_qk`: the width of a head's queries and keys, at most that of
    its values, `d_head`, which null stands for. `dropout_at`: everywhere (embeddings, hidden units, residual joins, the
    head's input) or residual (the joins alone). `pretrained`: the directory of a finished run whose last weights
    the training starts from (`runs.pretrained`); `imported`: the SHA-256 of the file whose weights a run of `efftx
    import` holds, which has no training of its own. `norm_eps`: what LayerNorms add to the variance.
    """

    model: str = MISSING
    size: str = MISSING
    stack: str = "decoder"
    objective: str = "auto"
    n_layers: int = MISSING
    n_encoder_layers: int | None = None
    attention_per_block: int = 1
    d_model: int = MISSING
    d_ff: int = MISSING
    d_ff_rule: str = "given"
    n_heads: int = MISSING
    d_head: int | None = None
    d_qk: int | None = None
    activation: str = "relu"
    attention: list[str] = field(default_factory=lambda: ["full"])
    share_qk: bool = False
    attention_bias: bool = False
    dropout: float = 0.0
    dropout_at: str = "everywhere"
    attention_dropout: float = 0.0
    tie_embeddings: bool = False
    norm_eps: float = 1e-6
    full: FullConfig = field(default_factory=FullConfig)
    lsh: LSHConfig = field(default_factory=LSHConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    strided: StridedConfig = field(default_factory=StridedConfig)
    fixed: FixedConfig = field(default_factory=FixedConfig)
    identity: IdentityConfig = field(default_factory=IdentityConfig)
    positions: PositionsConfig = field(default_factory=PositionsConfig)
    reversible: ReversibleConfig = field(default_factory=ReversibleConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    chunking: ChunkingConfig = field(default_factory=ChunkingConfig)
    sparse_ff: SparseFFConfig = field(default_factory=SparseFFConfig)
    sparse_qkv: SparseQKVConfig = field(default_factory=SparseQKVConfig)
    sparse_loss: SparseLossConfig = field(default_factory=SparseLossConfig)
    sru: SRUConfig = field(default_factory=SRUConfig)
    init: InitConfig = field(default_factory=InitConfig)
    data: DataConfig = MISSING
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    threads: int | None = None
    compile: bool = False
    pretrained: str | None = None
    imported: str | None = None
    run_dir: str | None = None

    @property
    def width_of_head(self) -> int:
        """Width of one attention head: `d_head`, or d_model / n_heads where it is not given."""
        return self.d_head if self.d_head is not None else self.d_model // self.n_heads

    @property
    def target_length(self) -> int:
        """Target tokens in a row: `data.length` of a language model, else what the data set's objective needs."""
        if self.objective == "lm":
            return self.data.length
        return data_sets.find_source(self.data.name).target_length(self.data, self.objective)

    @property
    def vocab_size(self) -> int:
        """Tokens of the data set, by its keys alone: nothing is opened."""
        return data_sets.find_source(self.data.name).vocab_size(self.data, self.objective)

    @property
    def inner_dropout(self) -> float:
        """Dropout of embeddings, hidden units and the head's input: none where it is at the residual joins alone."""
        return self.dropout if self.dropout_at == "everywhere" else 0.0

    def grid(self, length: int) -> list[int]:
        """The grid of factorized positions for rows of `length` tokens, the slowest axis first."""
        if self.positions.axial_shape:
            return self.positions.axial_shape
        side = getattr(self.data, "side", None)
        if side:
            return [side, side, 3]
        stride = next(iter(self.strides(length)), near_root(length))
        return [-(-length // stride), stride]

    def strides(self, length: int) -> list[int]:
        """The stride of each factored kind of attention that the model has, in rows of `length` tokens."""
        return [getattr(self, kind).stride_of(length) for kind in FACTORED if kind in self.attention]

    @property
    def decoder_length(self) -> int:
        """Tokens that the decoder's blocks run over: its own, and in a concatenated stack the encoder's before them."""
        return self.target_length + (self.data.length if self.stack == "concatenated" else 0)

    @property
    def n_threads(self) -> int:
        """Threads of the run: `threads`, or the cores that this process may use."""
        return self.threads or _cores()


def _kinds(node: type) -> tuple[str, ...]:
    types = {item.name: item.type for item in dataclasses.fields(Config)}
    return tuple(name for name, kind in types.items() if isinstance(kind, type) and issubclass(kind, node))


ATTENTION = _kinds(AttentionConfig)
"""Every kind of attention: the nodes of the schema that are one's."""
FACTORED = _kinds(FactoredConfig)
"""Those of two factors."""


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    return dataclasses.asdict(config)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

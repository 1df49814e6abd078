"""The keys of training, evaluation, checkpoints and trackers; no torch is needed to read them."""

from dataclasses import dataclass, field


@dataclass
class TrainingConfig:
    """`steps` updates of `batch_size` rows x `accumulation` micro-batches; `clip_norm` of the gradient, 0 for none.

    `label_smoothing`: the share of the probability that is learned for all tokens alike.

    The micro-batches of a step are the rows of one batch of `batch_size` x `accumulation`, and every target of them
    counts alike: but for what is drawn in a forward pass, the gradient is that of the one batch.
    """

    steps: int = 1000
    batch_size: int = 8
    accumulation: int = 1
    clip_norm: float = 0.0
    label_smoothing: float = 0.0


@dataclass
class EvaluationConfig:
    """`every` so many steps (0: only at the end), on `batches` batches (0: the whole split).

    `stop_at_accuracy` (%, of the target tokens, also where a test is of labels) ends the training at the first
    validation that reaches it; 0 trains to the last step.
    `min_context`: on the test split of a text every token that is scored has so many before it at least: rows slide by
    what they have more, over the same stretch of text as without (0: rows stand side by side, and a row's first token
    has none). `beam`: generated text is the best that a search of this width finds under `length_penalty` (Wu et al.
    2016); 1 is greedy decoding.
    """

    every: int = 500
    batches: int = 8
    stop_at_accuracy: float = 0.0
    min_context: int = 0
    beam: int = 1
    length_penalty: float = 0.6


@dataclass
class CheckpointConfig:
    """A checkpoint every `every` steps (0: none but those), before every evaluation and at the end.

    The last `keep` stay on the disk, and the best one. `asynchronous`: a thread writes it while the training goes on,
    and is waited for before an update changes what it writes.
    """

    every: int = 0
    keep: int = 2
    asynchronous: bool = False


@dataclass
class DistributedConfig:
    """How the processes that `torchrun` starts share a training: ddp or fsdp (`distributed.wrap`); alone, nothing.

    `offload`, with fsdp and in one process too: weights, gradients and optimiser state stay in the host's memory, and a
    block's weights are on the device where it runs (Reformer, section 3).
    """

    strategy: str = "ddp"
    offload: bool = False


@dataclass
class TrackerConfig:
    """Whether metrics are mirrored to TensorBoard, in the run's directory, and to Weights & Biases, and where there.

    That is its user or team, project, group and tags. `entity` and `group` null: the user's own, none; under
    `efftx reproduce` the group is the experiment.
    """

    tensorboard: bool = False
    wandb: bool = False
    project: str = "efftx"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)

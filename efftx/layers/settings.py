"""The keys of every mechanism but attention, and what they may be. Nothing here imports torch; the layers do."""

from dataclasses import dataclass, field
from math import prod

from efftx.errors import UserError, nearest


@dataclass
class ChunkingConfig:
    """Positions computed at a time, in the feed-forward layers (`ff`) and in logits and loss (`loss`); 0 is all."""

    ff: int = 0
    loss: int = 0


MAX_POSITIONS = 2**62
"""The most positions that can differ: they are int64."""


RESIDUALS = ("none", "depth")


@dataclass
class InitConfig:
    """Scales at the start. The defaults are the authors' of Reformer: tables of deviation 1.

    Terraformer and the Scaling Transformers start their learned positions as sines (of 0.71 in the mean square).
    `embedding_std` of the token table, null for 1, or d_model^-0.5 where it is tied to the logits; `position_std` of
    learned and axial position tables. `residual`: `depth` starts the matrices that write to the residual stream
    1 / sqrt(branches of their stack) smaller, 1 / sqrt(2 n_layers) in a plain decoder (GPT-2; Sparse Transformer,
    section 6), `none` as they are. `weights` above 0: the matrices of the blocks' dense layers are Gaussian of variance
    `weights` / d_in in place of Glorot-uniform (Sparse Transformer: 0.125, which its code reads as the variance where
    the paper writes N(0, 0.125 / sqrt(d_in))); sparse feed-forward and sparse queries, keys and values keep their own
    start. `weights_apart`: they come from random numbers of their own; false takes those that the token table was drawn
    from once more, so that the first layer's queries start as a multiple of it. `zero_logits`: the layer to the logits
    starts at zero, and the first loss at the logarithm of the vocabulary.
    """

    embedding_std: float | None = None
    position_std: float = 1.0
    residual: str = "none"
    weights: float = 0.0
    weights_apart: bool = False
    zero_logits: bool = False


@dataclass
class PositionsConfig:
    """`kind`: axial, factorized, learned, coupled, sinusoidal, digits or none.

    `axial_shape` the grid that the sequence is laid out on, row by row; `axial_dims` the width of each axis' table, in
    sum d_model. `factorized` adds up one table an axis, each d_model wide; its grid is `axial_shape`, or where that is
    empty a picture's rows, columns and channels, and of anything else rows as long as the attention's stride.
    `max_len` rows of a learned table, 0 for the data's length. `coupled` is one learned table for both stacks, read at
    a token's place in its number, as the data set says where one begins; a row of training starts anywhere in it, so
    that a table longer than the rows of training is learned as a whole (Cho et al. 2024). `before_shift`: the decoder's
    tokens get their positions before they are shifted, so that a place has the position of the token it reads, and the
    first a vector of its own (Sparse Transformer). The rest is for digits: positions written in each of `bases` with
    `n_digits` digits. In training a row starts from position 0 with the probability `start_from_zero`, else anywhere,
    and loses a base with the probability `base_dropout`. The defaults are the authors'
    (`FixedBasePositionalEncoding`: one row in 2, one in 100).
    """

    kind: str = "learned"
    axial_shape: list[int] = field(default_factory=list)
    axial_dims: list[int] = field(default_factory=list)
    max_len: int = 0
    before_shift: bool = False
    bases: list[int] = field(default_factory=lambda: [11, 13, 14, 15])
    n_digits: int = 8
    start_from_zero: float = 0.5
    base_dropout: float = 0.01


def off_the_grid(config: PositionsConfig, side: int | None) -> str | None:
    """What to tell where positions lie on a grid whose last axes are not the rows of pictures of `side` pixels."""
    if side is None or config.kind not in ("axial", "factorized") or not config.axial_shape:
        return None
    row = 3 * side
    if row in (prod(config.axial_shape[i:]) for i in range(len(config.axial_shape))):
        return None
    fits = f"[{side},{row}]" if config.kind == "axial" and len(config.axial_shape) == 2 else f"[{side},{side},3]"
    return f"positions.axial_shape={config.axial_shape} does not follow the pictures' rows of {row} bytes: {fits} would"


def check_positions(config: PositionsConfig, d_model: int, length: int) -> None:
    """Refuse, with a UserError, digit positions that cannot be: of no base, of a width that does not divide d_model,
    too few digits for `length`, a probability that is none.
    """
    if config.kind != "digits":
        return
    if not config.bases or min(config.bases) < 2:
        raise UserError("bad_value", f"positions.bases={config.bases} must be one number or more, each at least 2.")
    if config.n_digits < 1:
        raise UserError("bad_value", f"positions.n_digits={config.n_digits} must be at least 1.")
    if d_model % config.n_digits:
        raise UserError(
            "bad_value",
            f"positions.n_digits={config.n_digits} does not divide d_model={d_model}.",
            "Each digit has d_model / n_digits features of its own.",
        )
    if length >= countable_positions(config.bases, config.n_digits):
        raise UserError(
            "bad_value",
            f"positions.n_digits={config.n_digits} digits in base {min(config.bases)} count below"
            f" {countable_positions(config.bases, config.n_digits)}, but a row has {length} tokens.",
            "Raise positions.n_digits.",
        )
    for key in ("start_from_zero", "base_dropout"):
        if not 0 <= getattr(config, key) <= 1:
            raise UserError("bad_value", f"positions.{key}={getattr(config, key)} must be a probability.")


def countable_positions(bases: list[int], n_digits: int) -> int:
    """How many positions `n_digits` digits tell apart in every base."""
    return min(min(bases) ** n_digits, MAX_POSITIONS)


ACTIVATIONS = ("relu", "gelu", "gelu_sigmoid")

RANKS = ("code", "paper")

FORMS = {"code": (False, False), "paper": (True, True), "mask_after": (True, False), "first_bias": (False, True)}
"""Forms of the sparse feed-forward: whether the mask comes after the ReLU, and whether there is a first bias."""

CONTROLLERS = ("learned", "frozen", "oracle", "token")


@dataclass
class SparseFFConfig:
    """Keys of the sparse feed-forward ("Sparse is Enough in Scaling Transformers", section 3.1).

    `N` units a block, one of them active; 0 is the dense layer. `form`: `code` relu((x W1) * mask) as the authors'
    code, `paper` relu(x W1 + b1) * mask as section 3.1 prints it, the same values and other gradients; `mask_after` and
    `first_bias` are the one or the other half of that difference. `controller`, which chooses the units: `learned`;
    `frozen`, as it was initialised; `oracle`, the largest pre-activation of each block, which reads all of W1 and so
    bounds what a choice can reach; `token`, a fixed hash of the token at that position. The last three train with the
    hard mask and no noise. `token_bias`, ours, is added to the logits of the units that the same hash names: between a
    learned controller, at 0, and the hash alone.

    `rank` of the controller: `code` d_ff / N as the authors' code, `paper` d_model / N, or a number. Training: Gumbel
    noise times `temperature` on the choice, and the hard mask with probability `quant_prob`, one coin a call, else the
    softmax. `multiply_by_controller` also multiplies the chosen units by their probabilities; `kernel_scaling` starts
    W2 sqrt(N) larger, so that the output's variance in evaluation is the dense layer's.
    """

    N: int = 0
    form: str = "code"
    controller: str = "learned"
    token_bias: float = 0.0
    rank: str = "code"
    temperature: float = 0.1
    quant_prob: float = 0.3
    multiply_by_controller: bool = False
    kernel_scaling: bool = False

    @property
    def mask_after(self) -> bool:
        """Whether the mask multiplies what the ReLU gives."""
        return FORMS[self.form][0]

    @property
    def first_bias(self) -> bool:
        """Whether there is a bias b1 before the ReLU."""
        return FORMS[self.form][1]

    @property
    def has_controller(self) -> bool:
        """Whether the units are chosen by a controller with weights of its own."""
        return self.controller not in ("oracle", "token")

    @property
    def learns(self) -> bool:
        """Whether training changes the controller, by a noisy and partly soft mask."""
        return self.controller not in ("frozen", "oracle", "token")

    @property
    def reads_ids(self) -> bool:
        """Whether the token at a position has a say in the choice."""
        return self.controller == "token" or bool(self.has_controller and self.token_bias)


def rank_of(config: SparseFFConfig, d_model: int, d_ff: int) -> int:
    """The width between the controller's two matrices; raises UserError where the rule is unknown or gives none."""
    if config.rank in RANKS:
        width = d_ff if config.rank == "code" else d_model
        rank = width // config.N
        why = f"{'d_ff' if config.rank == 'code' else 'd_model'}={width} over sparse_ff.N={config.N} is less than 1"
    else:
        rank = int(config.rank) if config.rank.isdecimal() else 0
        why = "it is neither 'code' nor 'paper' nor a whole number from 1"
    if rank < 1:
        raise UserError("bad_value", f"sparse_ff.rank={config.rank} gives the controller no rank: {why}.")
    return rank


def check_sparse_ff(config: SparseFFConfig, d_model: int, d_ff: int) -> None:
    """Raises UserError for keys that no layer of these widths can be built from."""
    for key, known in {"form": FORMS, "controller": CONTROLLERS}.items():
        word = getattr(config, key)
        if word not in known:
            hint = f"{nearest(word, known, at_most=0)} Known: {', '.join(known)}.".strip()
            raise UserError("bad_value", f"sparse_ff.{key}={word} is not known.", hint)
    if config.N < 1:
        raise UserError("bad_value", f"sparse_ff.N={config.N} must be at least 1.", "0 switches to the dense layer.")
    if d_ff % config.N:
        raise UserError(
            "bad_value",
            f"d_ff={d_ff} cannot be cut into blocks of sparse_ff.N={config.N} units.",
            f"Take d_ff={max(1, round(d_ff / config.N)) * config.N}, or a divisor of d_ff as sparse_ff.N.",
        )
    if config.has_controller:
        rank_of(config, d_model, d_ff)
    elif config.multiply_by_controller:
        why = f"sparse_ff.controller={config.controller} gives no probabilities"
        raise UserError("bad_value", f"sparse_ff.multiply_by_controller=true: {why}.", "Leave it false.")
    if config.temperature < 0:
        raise UserError("bad_value", f"sparse_ff.temperature={config.temperature} must not be negative.")
    if not 0 <= config.quant_prob <= 1:
        raise UserError("bad_value", f"sparse_ff.quant_prob={config.quant_prob} is not a probability.")


VARIANTS = ("multiplicative_convolution", "multiplicative", "convolution", "modular", "low_rank")


OUTPUTS = ("none", "multiplicative", "convolution", "multiplicative_convolution", "dense")


KERNELS = ("code", "paper")


CROSS = ("dense", "query")


@dataclass
class SparseQKVConfig:
    """Keys of sparse queries, keys and values ("Sparse is Enough", section 3.2); `S` modules, 0 for dense ones.

    `F` positions of a kernel; `kernel` code: queries and keys see 3 modules and values 1, paper: all see F. `variant`:
    multiplicative_convolution, or for ablation multiplicative or convolution alone, modular (each module a matrix of
    its own), low_rank (through `rank` numbers, 0 for d_model / S). `output` is what follows attention: none in the
    authors' models, or the words of the variants, or dense. `concat_input`: the values' convolution reads the shared
    layer's module and the input's. `average_qk`: a shared query and key is the mean of two, as in the authors' LSH
    layer of three projections. `cross`: dense, or query for a sparse query without an output projection. `encoder`
    false leaves the encoder's projections dense.
    """

    S: int = 0
    F: int = 3
    kernel: str = "code"
    variant: str = "multiplicative_convolution"
    rank: int = 0
    output: str = "none"
    concat_input: bool = False
    average_qk: bool = False
    cross: str = "dense"
    encoder: bool = True


def check_sparse_qkv(config: SparseQKVConfig, d_model: int, n_heads: int) -> None:
    """Raises UserError, naming key and value, for what no sparse layer of this width could be built from."""
    words = {"kernel": KERNELS, "variant": VARIANTS, "output": OUTPUTS, "cross": CROSS}
    for key, known in words.items():
        word = getattr(config, key)
        if word not in known:
            raise UserError("bad_value", f"sparse_qkv.{key}={word} is not known.", nearest(word, known))
    for key, least in {"S": 1, "F": 1, "rank": 0}.items():
        if getattr(config, key) < least:
            raise _bad(f"sparse_qkv.{key}={getattr(config, key)} must be at least {least}.")
    if d_model % config.S:
        raise _bad(f"d_model={d_model} is not divisible by sparse_qkv.S={config.S}: modules are of one width.")
    if n_heads < 1 or d_model % n_heads:
        raise _bad(f"d_model={d_model} is not divisible by n_heads={n_heads}: sparse queries fill all of d_model.")
    if config.kernel == "paper" and config.F % 2 == 0:
        raise _bad(
            f"sparse_qkv.F={config.F} with sparse_qkv.kernel=paper would be an even number of modules: no module is "
            "its middle.",
            "Choose an odd F, or sparse_qkv.kernel=code.",
        )
    if config.rank and config.variant != "low_rank":
        raise _bad(f"sparse_qkv.rank={config.rank} is of sparse_qkv.variant=low_rank, not of {config.variant}.")
    if config.concat_input and config.variant != "multiplicative_convolution":
        raise _bad(
            "sparse_qkv.concat_input=true is of sparse_qkv.variant=multiplicative_convolution, not of "
            f"{config.variant}."
        )


def _bad(message: str, hint: str = "") -> UserError:
    return UserError("bad_value", message, hint)


@dataclass
class SparseLossConfig:
    """`S` modules of the layer to the vocabulary, 0 for a dense one (authors: 4, 8 in the largest model)."""

    S: int = 0


def check_sparse_loss(config: SparseLossConfig, vocab_size: int) -> None:
    """Raises UserError for an S below 1 and for one that leaves a module without any token of the vocabulary."""
    if config.S < 1:
        raise UserError("bad_value", f"sparse_loss.S={config.S} must be at least 1, or 0 for a dense loss layer.")
    d_module = -(-vocab_size // config.S)
    if (config.S - 1) * d_module >= vocab_size:
        n_modules = -(-vocab_size // d_module)
        raise UserError(
            "bad_value",
            f"sparse_loss.S={config.S} modules of {d_module} tokens each are more than a vocabulary of {vocab_size} "
            "fills.",
            f"sparse_loss.S={n_modules} fills all of its modules.",
        )


@dataclass
class SRUConfig:
    """`n_layers` SRU layers of `d` units in every feed-forward block, 0 for none (authors: 1 of 32, 64 when big)."""

    n_layers: int = 0
    d: int = 32


@dataclass
class RecomputeConfig:
    """`enabled` keeps of each block its input alone, and runs it again in the backward pass: the same bits."""

    enabled: bool = False


@dataclass
class ReversibleConfig:
    """`enabled` runs two streams without stored activations. `merge` joins them before the logits.

    `concat`, as the Reformer authors' language model, makes the head 2 d_model wide; `mean` keeps the ordinary model's
    size. `encoder` says what the concatenated stack's decoder reads: `streams` are the encoder's two as they are,
    `merged` is their mean through a linear layer and a LayerNorm, on both of the decoder's streams (authors' code:
    `reversible_encoder` true and false).
    """

    enabled: bool = False
    merge: str = "concat"
    encoder: str = "streams"

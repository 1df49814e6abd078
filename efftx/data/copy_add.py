"""Copying and adding long numbers: do they go on at a length they were not trained at? (Terraformer; authors' code.)

Shape suffixes: B rows of a batch, L target tokens, E input tokens, N digits of a row.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from efftx.data.dataset import Batch, DataConfig, Source, draw
from efftx.data.prepared import SPLITS
from efftx.data.rendering import Text
from efftx.data.vocabulary import EOS, PAD
from efftx.errors import UserError, nearest

TASKS = ("copy", "add")
FIRST_DIGIT = 2
_MANY = 2**62


@dataclass
class CopyAddConfig(DataConfig):
    """`task` copy or add, in `base`; digits of a question in training and, `eval_`, in validation and test.

    A question's digits are those of both numbers together. The paper's values: base 10, training up to 128 digits,
    evaluation on 256 to 300 (the authors' lengths 3-129 and 257-301 count the plus as well).

    `stages` is a curriculum: the most digits of training in place of `max_digits`, for `stage_steps` steps each, before
    those of `max_digits`. The step alone says which stage it is, so that a resumed run goes on in its own.
    """

    task: str = "copy"
    base: int = 10
    min_digits: int = 2
    max_digits: int = 128
    eval_min_digits: int = 256
    eval_max_digits: int = 300
    stages: list[int] = field(default_factory=list)
    stage_steps: int = 1000


@dataclass(frozen=True)
class CopyAdd:
    """Questions and answers, both with the least significant digit first.

    Copying: input `d1 .. dn`, target `d1 .. dn <end>`, digits uniform. Adding: input `a + b`, target the digits of the
    sum and `<end>`; numbers begin with no 0 but for 0 itself, as in the authors' code. n is uniform in the split's
    range, and for adding so is the number of a's digits in 1 to n - 1. (The authors draw a's digits first, and b's up
    to what is left; in evaluation a has 128 to 214 and b at least one, so that their n can be as small as 129.)

    Tokens: 0 padding, 1 end of sequence, the digits, plus. Weights are 1 on the answer and its end. Rows are padded to
    `input_length` and `length`, those of training only as far as its longest question needs. Row i of a batch does not
    depend on the batch size; each split is a random stream of its own, and those of evaluation do not depend on what
    the training is.
    """

    config: CopyAddConfig
    name: str = "copy_add"
    unit: str = "nats/token"

    def __post_init__(self) -> None:
        task, base = self.config.task, self.config.base
        if task not in TASKS:
            raise UserError("bad_value", f"data.task={task} is not a task of data=copy_add.", nearest(task, TASKS))
        if not 2 <= base <= 10:
            raise UserError("bad_value", f"data.base={base} must be from 2 to 10.")
        fewest = 2 if task == "add" else 1
        for prefix, split in (("", "train"), ("eval_", "valid")):
            low, high = self._range(split)
            if not fewest <= low <= high:
                raise UserError(
                    "bad_value",
                    f"data.{prefix}min_digits={low} to data.{prefix}max_digits={high} is no range for task={task}.",
                    f"A question has at least {fewest} digits, and the range begins with its least.",
                )
        for most in self.config.stages:
            if not self.config.min_digits <= most <= self.config.max_digits:
                raise UserError(
                    "bad_value",
                    f"data.stages={self.config.stages}: a stage of {most} digits is not between "
                    f"data.min_digits={self.config.min_digits} and data.max_digits={self.config.max_digits}.",
                    "A stage trains on numbers of data.min_digits to so many digits.",
                )
        if self.config.stages and self.config.stage_steps < 1:
            raise UserError("bad_value", f"data.stage_steps={self.config.stage_steps} must be at least 1.")
        inputs = max(self._needs("train")[0], self._needs("valid")[0])
        if self.input_length < inputs:
            raise UserError(
                "bad_value",
                f"data.length={self.input_length} is too short for the longest question of {inputs} tokens.",
                f"Set data.length={inputs}, or lower data.max_digits and data.eval_max_digits.",
            )

    @property
    def variant(self) -> str:
        """The task with its base and its numbers of digits."""
        trained, evaluated = ("-".join(str(n) for n in self._range(split)) for split in ("train", "valid"))
        stages = ",".join(str(most) for most in self.config.stages)
        after = f" after {stages} for {self.config.stage_steps} steps each" if stages else ""
        return f"copy_add[{self.config.task},base={self.config.base},digits={trained}{after},evaluation={evaluated}]"

    @property
    def vocab_size(self) -> int:
        """The digits, plus, padding and the end of sequence: 13 in base 10, as the authors'."""
        return self.config.base + 3

    @property
    def input_length(self) -> int:
        """Input tokens in a row."""
        return self.config.length

    @property
    def length(self) -> int:
        """Target tokens in a row: the longest answer and its end, unless more are asked for."""
        return max(self.config.target_length, self._needs("train")[1], self._needs("valid")[1])

    @property
    def chance_accuracy(self) -> float:
        """Accuracy in % of guessing each digit without a look at the question, 10 in base 10.

        The one end a row, under 0.5 % of the tokens that count at the paper's lengths, is left out of this level.
        """
        return 100.0 / self.config.base

    @property
    def checksum(self) -> str:
        """SHA-256 over the variant and the first rows of each split: another generator has another checksum."""
        digest = hashlib.sha256(self.variant.encode())
        for split in SPLITS:
            batch = self.batch(split, 0, 0, 4)
            for tokens in (batch.inputs_BE, batch.tokens_BL):
                assert tokens is not None
                digest.update(tokens.numpy().astype("<i8").tobytes())
            digest.update(batch.weights_BL.numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def batch(self, split: str, seed: int, step: int, batch_size: int) -> Batch:
        """Batch `step` of a split's stream, a pure function of its arguments; valid and test ignore `seed`."""
        low, high = self._range(split, step)
        base = self.config.base
        stream = f"copy_add {self.config.task} base {base} digits {low}-{high}"

        def drawn(what: str, a_row: int, below: int) -> np.ndarray:
            return draw(f"{stream} {what}", split, seed, step, batch_size * a_row, below).reshape(batch_size, a_row)

        n_B1 = low + drawn("count", 1, high - low + 1)
        digit_BN = drawn("digits", high, base)
        if self.config.task == "copy":
            inputs_BE, n_inputs_B1 = FIRST_DIGIT + digit_BN, n_B1
            answer_BN, n_answer_B1 = digit_BN, n_B1
        else:
            first_B1 = 1 + drawn("split", 1, _MANY) % (n_B1 - 1)
            _no_leading_zero(digit_BN, first_B1, n_B1, 1 + drawn("leading", 2, base - 1))
            inputs_BE, n_inputs_B1 = self._with_plus(digit_BN, first_B1), n_B1 + 1
            answer_BN, n_answer_B1 = _add(digit_BN, first_B1, n_B1, base)
        n_inputs, n_targets = self._needs("train", step) if split == "train" else (self.input_length, self.length)
        targets_BL = _padded(FIRST_DIGIT + answer_BN, n_answer_B1, n_targets)
        np.put_along_axis(targets_BL, n_answer_B1, EOS, axis=1)
        return Batch.of(targets_BL, targets_BL != PAD, _padded(inputs_BE, n_inputs_B1, n_inputs))

    def n_batches(self, split: str, batch_size: int) -> int | None:
        """None: there are always more."""
        return None

    def _range(self, split: str, step: int | None = None) -> tuple[int, int]:
        """The fewest and the most digits of a split's questions; of training at `step`, or without one at its end."""
        if split != "train":
            return self.config.eval_min_digits, self.config.eval_max_digits
        stages = self.config.stages
        stage = len(stages) if step is None else min(step // self.config.stage_steps, len(stages)) if stages else 0
        return self.config.min_digits, [*stages, self.config.max_digits][stage]

    def _needs(self, split: str, step: int | None = None) -> tuple[int, int]:
        """Tokens of the longest question, and of the longest answer with the end: a sum has n digits at most."""
        high = self._range(split, step)[1]
        return high + (self.config.task == "add"), high + 1

    def _with_plus(self, digit_BN: np.ndarray, first_B1: np.ndarray) -> np.ndarray:
        place_E = np.arange(digit_BN.shape[1] + 1)
        # A question has digits on both sides of the plus, so that the last place is always after it.
        digit_BE = np.take_along_axis(digit_BN, place_E - (place_E > first_B1), axis=1)
        return np.where(place_E == first_B1, FIRST_DIGIT + self.config.base, FIRST_DIGIT + digit_BE)


@dataclass(frozen=True)
class Digits(Text):
    """Digits and plus as people write them, in the order of the data: the least significant digit first."""

    base: int
    eos: int | None = EOS
    ends_inputs: bool = False

    @property
    def form(self) -> str:
        """Which characters there are."""
        return f"digits from 0 to {self.base - 1}, the least significant first, and + between two numbers"

    def encode(self, text: str) -> list[int]:
        """One token a character; UserError for one that is neither a digit of the base nor plus."""
        known = "0123456789"[: self.base] + "+"
        for character in text:
            if character not in known:
                message = f"'{character}' is no token of data=copy_add in base {self.base}."
                raise UserError("unknown_token", message, f"Write {self.form}.")
        return [FIRST_DIGIT + known.index(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The digits; padding and ends give nothing."""
        known = "0123456789"[: self.base] + "+"
        return "".join(known[token - FIRST_DIGIT] for token in ids if token >= FIRST_DIGIT)


def _no_leading_zero(digit_BN: np.ndarray, first_B1: np.ndarray, n_B1: np.ndarray, leading_B2: np.ndarray) -> None:
    """Puts a number's last digit, if it has more than one, in place."""
    for number, (end_B1, count_B1) in enumerate(((first_B1, first_B1), (n_B1, n_B1 - first_B1))):
        old_B1 = np.take_along_axis(digit_BN, end_B1 - 1, axis=1)
        new_B1 = np.where(count_B1 > 1, leading_B2[:, number : number + 1], old_B1)
        np.put_along_axis(digit_BN, end_B1 - 1, new_B1, axis=1)


def _add(digit_BN: np.ndarray, first_B1: np.ndarray, n_B1: np.ndarray, base: int) -> tuple[np.ndarray, np.ndarray]:
    """The sum's digits and their number, of the two numbers that `first_B1` cuts a row into."""
    width = digit_BN.shape[1]
    place_N = np.arange(width)
    a_BN = np.where(place_N < first_B1, digit_BN, 0)
    b_BN = np.take_along_axis(digit_BN, np.minimum(place_N + first_B1, width - 1), axis=1)
    b_BN = np.where(place_N < n_B1 - first_B1, b_BN, 0)
    sum_BN = a_BN + b_BN
    for place in range(width - 1):
        sum_BN[:, place + 1] += sum_BN[:, place] // base
    sum_BN %= base
    n_sum_B1 = np.where(sum_BN > 0, place_N + 1, 1).max(axis=1, keepdims=True)
    return sum_BN, n_sum_B1


def _padded(token_BN: np.ndarray, n_B1: np.ndarray, width: int) -> np.ndarray:
    """The first `n_B1` tokens of each row, then padding up to `width`."""
    out = np.full((len(token_BN), width), PAD, dtype=np.int64)
    out[:, : token_BN.shape[1]] = np.where(np.arange(token_BN.shape[1]) < n_B1, token_BN, PAD)
    return out


def open_copy_add(config: CopyAddConfig, objective: str = "seq2seq") -> CopyAdd:
    """The task with the configured numbers of digits."""
    return CopyAdd(config)


SOURCE = Source(
    name="copy_add",
    config=CopyAddConfig,
    licence="generated, no licence needed",
    variant="copy_add",
    open=open_copy_add,
    vocab_size=lambda config, objective="seq2seq": open_copy_add(config).vocab_size,
    rendering=lambda config, objective="seq2seq", model=None: Digits(config.base),
    objectives=("seq2seq",),
    targets=lambda config: open_copy_add(config).length,
    uncut=True,
    # 0 stands in front of an answer, as the = of a sum does.
    separators=lambda config: (PAD, FIRST_DIGIT + config.base),
    endless=True,
)

"""SentencePiece vocabularies: T5's own, and unigram ones trained on a data set's text.

Training is SentencePiece's own too: with a fixed number of threads the same text gives the same file, byte for byte,
which the unigram trainer of `tokenizers` does not promise (its ids change from run to run).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from efftx.data.vocabulary import EOS, PAD, UNK, Vocabulary
from efftx.errors import UserError

TRAINING_CHARACTERS = 10_000_000
"""So much of the beginning of a text a vocabulary is trained on: more costs minutes and changes few pieces."""

# The result depends on it, so it is the same on every machine.
_THREADS = 2


class SentencePieceVocabulary(Vocabulary):
    """The pieces of a SentencePiece model, given as the bytes of its file; messages call it `origin`.

    Its name is `kind` and the number of pieces. `UserError` if the bytes are no model, or one whose padding, end of
    sequence and unknown piece are not 0, 1 and 2.
    """

    def __init__(self, model: bytes, kind: str, origin: str) -> None:
        self.model, self.checksum = model, hashlib.sha256(model).hexdigest()
        try:
            if not model:  # the library would take it as a model to be loaded later
                raise ValueError
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.n_pieces = self._processor.vocab_size()
            special = (self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id())
        except (RuntimeError, ValueError) as error:
            raise UserError("damaged_file", f"The vocabulary {origin} is no SentencePiece model.") from error
        self.name = f"{kind}-{self.n_pieces}"
        if special != (PAD, EOS, UNK):
            raise UserError(
                "bad_value",
                f"The vocabulary {origin} has padding, end of sequence and unknown piece at {special}, not at "
                f"{(PAD, EOS, UNK)} as T5's.",
                "Train it with pad_id=0, eos_id=1, unk_id=2.",
            )

    def encode(self, text: str) -> list[int]:
        """The pieces of a text, normalised by the model's own rule (T5: NFKC, every run of blanks is one space)."""
        return [int(token) for token in self._processor.encode(text)]

    @property
    def pieces_sha256(self) -> str:
        """SHA-256 over the pieces in their order, which is the same for every file of one vocabulary."""
        pieces = "\n".join(self._processor.id_to_piece(i) for i in range(self.n_pieces))
        return hashlib.sha256(pieces.encode()).hexdigest()

    def _decode_pieces(self, ids: list[int]) -> str:
        return str(self._processor.decode(ids)) if ids else ""


def train_sentencepiece(n_pieces: int, texts: Iterable[str]) -> bytes:
    """The file of a unigram model with `n_pieces` pieces, 0 padding, 1 end of sequence, 2 unknown.

    It reads at most TRAINING_CHARACTERS of the texts. `UserError` where they are too few or too rich for `n_pieces`.
    """
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts, TRAINING_CHARACTERS),
            model_writer=written,
            model_type="unigram",
            vocab_size=n_pieces,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNK,
            bos_id=-1,
            max_sentence_length=1 << 24,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        made = f"No unigram vocabulary of data.vocab_size={n_pieces} pieces can be made from the training text"
        if most := re.search(r"value <= (\d+)", str(error)):
            raise UserError(
                "bad_value", f"{made}: it is too short.", f"Set data.vocab_size to at most {most[1]}."
            ) from error
        if least := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
            raise UserError(
                "bad_value", f"{made}: it has more characters.", f"Set data.vocab_size to at least {least[1]}."
            ) from error
        raise UserError("bad_value", f"{made}: {error}") from error
    return written.getvalue()


def _lines(texts: Iterable[str], at_most: int) -> Iterator[str]:
    """The lines of the texts that are not blank, as many as hold `at_most` characters."""
    for text in texts:
        for line in text.splitlines():
            if at_most <= 0:
                return
            if line.strip():
                yield line[:at_most]
                at_most -= len(line)

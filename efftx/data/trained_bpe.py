"""Byte-level BPE vocabularies, trained on a data set's text and read with `tokenizers`.

Every byte is a piece, so every text comes back as it was and none has an unknown piece. The same text gives the same
file, byte for byte, in every process and with any number of threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from efftx.data.sentencepiece_model import TRAINING_CHARACTERS
from efftx.data.vocabulary import EOS, PAD, UNK, Vocabulary
from efftx.errors import UserError

_SPECIAL = ("<pad>", "</s>", "<unk>")
_LEAST = len(_SPECIAL) + 256

# Every byte that UTF-8 can have, what normalisers change, blanks at both ends, and the special pieces as text.
_POINTS = (*range(0x800), *range(0x800, 0xD800, 0x40), *range(0xE000, 0x110000, 0x1000))
_PROBE = " e\u0301 \ufb01\r\n" + "".join(_SPECIAL) + "".join(map(chr, _POINTS)) + " "


class BPEVocabulary(Vocabulary):
    """The pieces of a byte-level BPE, given as the bytes of the JSON file of `tokenizers`; messages call it `origin`.

    Its name is bpe and the number of pieces. `UserError` if the bytes are no such file, if padding, end of sequence and
    unknown piece are not 0, 1 and 2, if ids are left out, or if a text does not come back as it was.
    """

    def __init__(self, model: bytes, origin: str) -> None:
        self.model, self.checksum = model, hashlib.sha256(model).hexdigest()
        try:
            self._tokenizer = Tokenizer.from_buffer(model)
        except ValueError as error:
            raise UserError("damaged_file", f"The vocabulary {origin} is no file of `tokenizers`.") from error
        self._tokenizer.encode_special_tokens = True  # else "</s>" in a text would be its end
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.n_pieces = self._tokenizer.get_vocab_size()
        self.name = f"bpe-{self.n_pieces}"
        special = tuple(self._tokenizer.token_to_id(piece) for piece in _SPECIAL)
        if special != (PAD, EOS, UNK):
            raise UserError(
                "bad_value",
                f"The vocabulary {origin} has padding, end of sequence and unknown piece ({', '.join(_SPECIAL)}) at "
                f"{special}, not at {(PAD, EOS, UNK)}.",
                f"Train it with special_tokens={list(_SPECIAL)}.",
            )
        if max(self._tokenizer.get_vocab().values()) >= self.n_pieces:
            raise UserError("bad_value", f"The ids of the vocabulary {origin} are not 0 to {self.n_pieces - 1}.")
        if any(self._decode_pieces(self.encode(text)) != text for text in (_PROBE, _PROBE.strip())):
            raise UserError(
                "bad_value",
                f"The vocabulary {origin} does not give back the text that it reads.",
                "Train it at the level of bytes, with all 256 of them, and without a normaliser.",
            )

    def encode(self, text: str) -> list[int]:
        """The pieces of a text, which is not normalised; a special piece written in it is text like any other."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    @property
    def pieces_sha256(self) -> str:
        """SHA-256 over the pieces and their merges, which is the same for every file of one vocabulary."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def _decode_pieces(self, ids: list[int]) -> str:
        """The text of the pieces' bytes; wrong UTF-8 decodes to U+FFFD, an unknown piece to nothing."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


def train_bpe(n_pieces: int, texts: Iterable[str]) -> bytes:
    """The file of a byte-level BPE with `n_pieces` pieces, 0 padding, 1 end of sequence, 2 unknown, then the bytes.

    It reads at most TRAINING_CHARACTERS of the texts. `UserError` where they are too short, or the pieces too few.
    """
    made = f"No bpe vocabulary of data.vocab_size={n_pieces} pieces can be made"
    if n_pieces < _LEAST:
        message = f"{made}: 3 special pieces and 256 bytes are in every one."
        raise UserError("bad_value", message, f"Set data.vocab_size to at least {_LEAST}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_pieces,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_beginning(texts, TRAINING_CHARACTERS), trainer)
    most = tokenizer.get_vocab_size()
    if most < n_pieces:
        message = f"{made} from the training text: it is too short."
        raise UserError("bad_value", message, f"Set data.vocab_size to at most {most}.")
    return tokenizer.to_str().encode()


def _beginning(texts: Iterable[str], at_most: int) -> Iterator[str]:
    """The first `at_most` characters of the texts."""
    for text in texts:
        yield text[:at_most]
        at_most -= len(text)
        if at_most <= 0:
            return

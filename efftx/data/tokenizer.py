"""Which vocabulary a text is written in: T5's own, one trained on the text, or its bytes."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efftx.core.artifact import checksum_file, read_checked
from efftx.core.files import read_file
from efftx.data.dataset import DataConfig
from efftx.data.download import download
from efftx.data.hub import hub, is_offline
from efftx.data.prepared import VOCABULARY, data_root, prepare_once
from efftx.data.rendering import Pieces
from efftx.data.text_files import local_path
from efftx.data.vocabulary import N_SENTINELS, ByteVocabulary, Vocabulary
from efftx.errors import UserError, nearest

if TYPE_CHECKING:
    from efftx.data.sentencepiece_model import SentencePieceVocabulary
    from efftx.data.trained_bpe import BPEVocabulary

VOCABULARY_FILE = "vocabulary.model"
"""What a run's directory calls the pieces that it was trained on."""
_MOST_BYTES = 1 << 28
TOKENIZERS = ("t5", "unigram", "bpe", "bytes")


@dataclass
class VocabularyConfig(DataConfig):
    """A text as tokens. `tokenizer`: t5, unigram or bpe (of bytes; both trained on the training split), bytes.

    `tokenizer_path`: a file to read instead of T5's download or a training, of SentencePiece or, for bpe, `tokenizers`.
    `vocab_size`: its pieces, to which 100 sentinels come (bytes have 259 pieces whatever it says).
    """

    tokenizer: str = "t5"
    tokenizer_path: str | None = None
    vocab_size: int = 32000


@dataclass
class TextConfig(VocabularyConfig):
    """Documents as tokens. `n_documents`: of those to train on only the first so many are taken (0: all).

    Of pairs of texts these are the documents of the training split. Of others they are those of the training files,
    before valid and test are cut from them where they have no files of their own: 100 in one file are 90, 5 and 5.
    """

    n_documents: int = 0


@dataclass(frozen=True)
class PublishedVocabulary:
    """A vocabulary on the Hub: file, size and SHA-256; `others` are the sums of the files it also comes in."""

    name: str
    place: str
    n_bytes: int
    sha256: str
    others: frozenset[str]


T5 = PublishedVocabulary(
    name="t5",
    place="google-t5/t5-small/resolve/df1b051c49625cf57a3d0d8d3863ed4d13564fe4/spiece.model",
    n_bytes=791_656,
    sha256="d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86",
    others=frozenset({"9e925505c08efc3173ed8aa1d7e7e396fa47f6e4aa7aee5a5f56093ca6722a93"}),  # as trax brings it along
)


def text_vocab_size(config: VocabularyConfig, objective: str = "lm") -> int:
    """Pieces and sentinels, told from the config alone; the same table for every objective."""
    return (ByteVocabulary.n_pieces if config.tokenizer == "bytes" else config.vocab_size) + N_SENTINELS


def text_rendering(config: VocabularyConfig, objective: str = "lm", model: bytes | None = None) -> Pieces:
    """What the tokens stand for, by the file of the pieces; UserError where it is needed and missing, or another's."""
    if config.tokenizer == "bytes":
        return Pieces(ByteVocabulary())
    if model is None:
        message = f"The pieces of data.tokenizer={config.tokenizer} are not there."
        raise UserError("missing_file", message, "A run keeps them in its directory, in vocabulary.model.")
    vocabulary = read_vocabulary(model, config.tokenizer, "that the run has kept")
    if vocabulary.n_pieces != config.vocab_size:
        message = f"The vocabulary that the run has kept has {vocabulary.n_pieces} pieces, not {config.vocab_size}."
        raise UserError("other_vocabulary", message, "Put the run's own vocabulary.model back.")
    return Pieces(vocabulary)


def check_tokenizer(config: VocabularyConfig) -> None:
    """`UserError` for an unknown tokenizer, and for a file beside bytes."""
    if config.tokenizer not in TOKENIZERS:
        message = f"data.tokenizer={config.tokenizer} is not a tokenizer."
        raise UserError("bad_value", message, nearest(config.tokenizer, TOKENIZERS))
    if config.tokenizer == "bytes" and config.tokenizer_path is not None:
        message = f"data.tokenizer=bytes reads no file, but data.tokenizer_path={config.tokenizer_path} is given."
        raise UserError("bad_value", message, "Leave one of the two out.")


def open_vocabulary(config: VocabularyConfig, trained_on: str, texts: Callable[[], Iterable[str]]) -> Vocabulary:
    """The vocabulary that the config says; a trained one is trained once, on `texts()`, under a file lock.

    `trained_on` (SHA-256 in hex) says which texts these are. A file that is neither T5's nor kept by a run is called by
    its checksum too. `UserError` for a file that is missing or of another size than the config says, a text too small
    for its vocabulary, no network.
    """
    if config.tokenizer == "bytes":
        return ByteVocabulary()
    if config.tokenizer_path is not None:
        origin = f"data.tokenizer_path={config.tokenizer_path}"
        path = local_path(config.tokenizer_path)
        model = _read(path, origin)
        trained_here = path.name == VOCABULARY_FILE and _is_sealed(path)
    elif config.tokenizer == "t5":
        origin = T5.place
        model = _read(fetch_t5(), origin)
        trained_here = False
    else:
        origin = "a trained one"
        model = _trained(config, trained_on, texts)
        trained_here = True
    vocabulary = read_vocabulary(model, config.tokenizer, origin)
    if vocabulary.n_pieces != config.vocab_size:
        raise UserError(
            "bad_value",
            f"The vocabulary {origin} has {vocabulary.n_pieces} pieces, but data.vocab_size={config.vocab_size}: "
            "a vocabulary file of another size than the config says.",
            f"Set data.vocab_size={vocabulary.n_pieces}, or give another file.",
        )
    known = vocabulary.checksum in {T5.sha256, *T5.others} if config.tokenizer == "t5" else trained_here
    if not known:
        # The same pieces with other scores cut a text otherwise, so that only the bytes tell whose vocabulary it is.
        kind = "sentencepiece" if config.tokenizer == "t5" else config.tokenizer
        vocabulary.name = f"{kind}-{vocabulary.n_pieces}@{vocabulary.checksum[:12]}"
    return vocabulary


def _is_sealed(path: Path) -> bool:
    """Whether a file lies as a run has written it: a vocabulary that efftx trained. DamagedFileError where not."""
    return checksum_file(path).is_file() and read_checked(path) is not None


def read_vocabulary(model: bytes, kind: str, origin: str) -> "SentencePieceVocabulary | BPEVocabulary":
    """The vocabulary in the bytes of a file, of `tokenizers` for bpe, else of SentencePiece; `UserError` as theirs."""
    read, _ = _library(kind)
    return read(model, origin)


def _library(kind: str) -> tuple[Callable[[bytes, str], Any], Callable[[int, Iterable[str]], bytes]]:
    """How a vocabulary is read and trained, by the library of its kind: a config or a plan loads neither."""
    if kind == "bpe":
        from efftx.data.trained_bpe import BPEVocabulary, train_bpe

        return BPEVocabulary, train_bpe
    from efftx.data.sentencepiece_model import SentencePieceVocabulary, train_sentencepiece

    return lambda model, origin: SentencePieceVocabulary(model, kind, origin), train_sentencepiece


def fetch_t5(published: PublishedVocabulary = T5) -> Path:
    """T5's vocabulary file, downloaded once; `UserError` where there is no network."""
    target = data_root() / "downloads" / f"{published.name}-spiece.model"
    hint = (
        "Set data.tokenizer_path to T5's spiece.model, or data.tokenizer to unigram, bpe or bytes, and data.path to "
        f"local documents; or put the file at {target}."
    )
    if not target.is_file() and is_offline():
        raise UserError("no_network", f"HF_HUB_OFFLINE is set, and {target} is not there.", hint)
    return download(f"{hub()}/{published.place}", target, published.n_bytes, published.sha256, hint)


def _read(path: Path, origin: str) -> bytes:
    hint = "Give a SentencePiece model file, such as T5's spiece.model; for data.tokenizer=bpe one of `tokenizers`."
    try:
        return read_file(path, _MOST_BYTES, hint)
    except FileNotFoundError as error:
        raise UserError("missing_file", f"Cannot read {origin}: {error.strerror}.", hint) from error


def _trained(config: VocabularyConfig, trained_on: str, texts: Callable[[], Iterable[str]]) -> bytes:
    name = f"{config.tokenizer}-{config.vocab_size}"
    file = "tokenizer.json" if config.tokenizer == "bpe" else "spiece.model"
    key = hashlib.sha256(f"efftx {file} {name} {trained_on}".encode()).hexdigest()

    def write(folder: Path) -> dict[str, Any]:
        _, train = _library(config.tokenizer)
        model = train(config.vocab_size, texts())
        (folder / file).write_bytes(model)
        return {"name": VOCABULARY, "variant": name, "bytes": len(model), "sha256": key}

    return (prepare_once(f"{VOCABULARY}-{key[:12]}", write).folder / file).read_bytes()

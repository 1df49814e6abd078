from __future__ import annotations

import numpy as np
import pytest
import torch

from efftx.data.vocabulary import ByteVocabulary
from efftx.data.windows import Corpus, LanguageModelRows
from efftx.errors import UserError


def tokens(largest: int = 299) -> Corpus:
    array = np.arange(300, dtype=np.uint16) % (largest + 1)
    return Corpus("text", "text[x]", "ab" * 32, dict.fromkeys(("train", "valid", "test"), array), 300, "tokens")


def rows(corpus: Corpus, length: int) -> LanguageModelRows:
    return LanguageModelRows(corpus, length, vocab_size=400, unit="nats/token")


def test_tokens_above_255_come_back_as_they_are() -> None:
    batch = rows(tokens(), 100).batch("valid", 0, 0, 3)
    assert torch.equal(batch.tokens_BL.flatten(), torch.arange(300))
    assert batch.inputs_BE is None


def test_a_token_that_the_vocabulary_lacks_is_refused_with_its_place() -> None:
    corpus = tokens()
    corpus.arrays["test"][150] = 300
    dataset = rows(corpus, 100)
    with pytest.raises(
        UserError, match=r"test of text\[x\] holds token 300, and its vocabulary ends with 299"
    ) as raised:
        dataset.batch("test", 0, 1, 1)
    assert raised.value.kind == "unknown_token"


def test_the_rows_say_which_vocabulary_they_are_in() -> None:
    vocabulary = ByteVocabulary()
    named = LanguageModelRows(tokens(), 10, vocab_size=359, unit="nats/token", vocabulary=vocabulary)
    assert named.vocabulary is vocabulary
    assert rows(tokens(), 10).vocabulary is None

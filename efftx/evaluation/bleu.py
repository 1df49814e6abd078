"""BLEU (Papineni et al. 2002) of translations through sacrebleu, cased and uncased, and the signature that names it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

TOKENIZER = "intl"
"""mteval-v14's international tokenisation, as in the Reformer's table 4."""


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU in %, `bleu` with case and `bleu_uncased` without; an empty prediction scores nothing.

    A prediction may have several references. ValueError where there is no prediction, or one without a reference.
    """
    if not predictions or not all(references):
        raise ValueError("BLEU needs at least one prediction, and a reference for each.")
    most = max(map(len, references))
    # One list for each place among the references; sacrebleu takes None where a text has fewer.
    streams = [[its[i] if i < len(its) else None for its in references] for i in range(most)]
    return {
        name: float(_metric(lowercase).corpus_score(list(predictions), streams).score)
        for name, lowercase in (("bleu", False), ("bleu_uncased", True))
    }


def signatures() -> dict[str, str]:
    """What a record says of the scores: sacrebleu's signature of each, for one reference a text."""
    return {
        f"{name}_signature": str(_metric(lowercase, True).get_signature())
        for name, lowercase in (("bleu", False), ("bleu_uncased", True))
    }


@cache
def _metric(lowercase: bool, signed: bool = False) -> Any:
    from sacrebleu.metrics import BLEU  # takes longer to load than all of efftx.evaluation

    # The number of references is part of a signature, and is known once there are some.
    references = [["-"]] if signed else None
    # By force: without a word about sentences that end in ` .`, as those of `data=grammar` do.
    return BLEU(lowercase=lowercase, tokenize=TOKENIZER, references=references, force=True)

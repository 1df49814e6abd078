"""The verdicts as people meet them: a sign and a style each, and how many there are of which."""

from __future__ import annotations

from collections.abc import Sequence

from efftx.study.claims import Verdict
from efftx.study.comparisons import CONTRADICTED, HOLDS, NOT_RUN, NOT_TESTED, UNDECIDED

# A badge has its own sign, because not everyone sees its colour.
BADGES = {
    HOLDS: ("holds", "✓"),
    CONTRADICTED: ("fails", "✗"),
    UNDECIDED: ("open", "≈"),
    NOT_TESTED: ("untested", "∅"),
    NOT_RUN: ("notrun", "○"),
}


def badge(verdict: str, count: str = "") -> str:
    """A verdict's badge as HTML: sign and word, or its sign and a count."""
    style, sign = BADGES[verdict]
    return f'<span class="badge {style}">{sign} {count or verdict}</span>'


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many claims got which verdict, in the order of BADGES: `2 hold, 1 not run`."""
    counts = {word: sum(v.verdict == word for v in verdicts) for word in BADGES}
    plural = {HOLDS: "hold"}
    return ", ".join(f"{n} {plural.get(word, word) if n > 1 else word}" for word, n in counts.items() if n)

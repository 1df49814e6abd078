"""The verdicts as people meet them: a sign and a style each, and how many there are of which."""

from __future__ import annotations

from collections.abc import Sequence

from efftx.reproduce.claims import Verdict
from efftx.reproduce.comparisons import CONTRADICTED, HOLDS, NOT_RUN, NOT_TESTED, UNDECIDED

# A badge has its own sign, because not everyone sees its colour.
BADGES = {
    HOLDS: ("holds", "✓"),
    CONTRADICTED: ("fails", "✗"),
    UNDECIDED: ("open", "≈"),
    NOT_TESTED: ("untested", "∅"),
    NOT_RUN: ("notrun", "○"),
}


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many claims got which verdict, in the order in which they first occur: `2 holds, 1 not run`."""
    counts: dict[str, int] = {}
    for verdict in verdicts:
        counts[verdict.verdict] = counts.get(verdict.verdict, 0) + 1
    return ", ".join(f"{n} {word}" for word, n in counts.items())

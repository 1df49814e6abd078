"""The verdicts as people meet them: a sign, a style and a meaning each, and how many there are of which."""

from __future__ import annotations

from collections.abc import Sequence

from efftx.study.claims import Verdict
from efftx.study.comparisons import CONTRADICTED, HOLDS, NOT_RUN, NOT_TESTED, UNDECIDED
from efftx.study.significance import LEVEL, MIN_SEEDS, TESTED

# A badge has its own sign, because not everyone sees its colour.
BADGES = {
    HOLDS: ("holds", "✓"),
    CONTRADICTED: ("fails", "✗"),
    UNDECIDED: ("open", "≈"),
    NOT_TESTED: ("untested", "∅"),
    NOT_RUN: ("notrun", "○"),
}
MEANINGS = {
    HOLDS: "the test over the seeds excludes the opposite",
    CONTRADICTED: "the test excludes the claim",
    UNDECIDED: f"neither, or fewer than {MIN_SEEDS} seeds",
    NOT_TESTED: "a model in it has not passed a gate: a trivial answer, or the task itself",
    NOT_RUN: "a cell it speaks of has no record",
}

REPLAY = (
    "A replay makes the beginning of a record anew with today's code: of a training its first three losses, of a "
    "timing its counts alone, for seconds come out differently each time."
)
INTERVAL = (
    f"The {100 * TESTED:.0f} % interval beside a verdict is that of one comparison, before Holm's correction; its ends "
    f"are what a one-sided test at {100 * LEVEL:.0f} % looks at."
)


def count_verdicts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """How many claims got which verdict, in the order of BADGES, without those that none got."""
    counts = {word: sum(v.verdict == word for v in verdicts) for word in BADGES}
    return {word: n for word, n in counts.items() if n}


def tally(verdicts: Sequence[Verdict]) -> str:
    """The same in words: `2 hold, 1 not run`."""
    counts = count_verdicts(verdicts)
    return ", ".join(f"{n} {'hold' if word == HOLDS and n > 1 else word}" for word, n in counts.items())

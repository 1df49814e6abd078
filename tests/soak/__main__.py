"""`python -m tests.soak [--flips N] [--kills N] [--seed N] [--only NAME] [--into FILE]`: exit code 1 after any harm."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from efftx.machine.devices import environment
from tests.soak import kills
from tests.soak.world import use_roots

HARM = ("silently wrong", "traceback", "lost", "hung", "litter")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--flips", type=int, default=500, help="flipped bits for each kind of file")
    parser.add_argument("--kills", type=int, default=100, help="kills of all commands together")
    parser.add_argument("--seed", type=int, default=0, help="decides which bits and which moments")
    parser.add_argument("--only", help="the one command that is killed")
    parser.add_argument("--into", type=Path, help="a file of JSON for the counts, with the code's commit")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="efftx-soak-") as name:
        folder = Path(name)
        # First: the commands are forks of this process, which must not have computed anything yet.
        killed = kills.kill_all(given.kills, folder / "kills", given.seed, given.only) if given.kills else {}
        show("kills", kills.COLUMNS, killed)
        use_roots(folder / "flips")
        from tests.soak import flips

        flips.quiet()
        flipped = flips.flip_all(given.flips, given.seed) if given.flips else {}
        show("flipped bits", flips.COLUMNS, flipped)
    if given.into is not None:
        counts = {
            "commit": environment().git_commit,
            "kills": table(kills.COLUMNS, killed),
            "flips": table(flips.COLUMNS, flipped),
        }
        given.into.write_text(json.dumps(counts, indent=1) + "\n")
    return int(any(counts[word] for counts in (*killed.values(), *flipped.values()) for word in HARM))


def table(columns: Sequence[str], counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {name: {word: found[word] for word in columns} for name, found in counts.items()}


def show(what: str, columns: Sequence[str], counts: Mapping[str, Counter[str]]) -> None:
    if counts:
        print(f"\n{what:<20}" + "".join(f"{word:>16}" for word in columns))
        for name, found in counts.items():
            print(f"{name:<20}" + "".join(f"{found[word]:>16,}" for word in columns))
        total = sum(counts.values(), Counter[str]())
        print(f"{'all':<20}" + "".join(f"{total[word]:>16,}" for word in columns), flush=True)


if __name__ == "__main__":
    sys.exit(main())

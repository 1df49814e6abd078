"""What the runner and the verifier ask of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from efftx.study.status import Composer


class Trained(Protocol):
    """What the runner reads of a finished training run."""

    run: Path
    hash: str
    resumed_from: int | None
    metrics: dict[str, float]
    timings: dict[str, float]
    first_losses: list[float]
    curve: list[dict[str, float]]
    data: dict[str, str]
    weights_sha256: str


@dataclass(frozen=True)
class Trivial:
    """What a trivial answer gives: its metrics, and name, variant and checksum of the data."""

    metrics: Mapping[str, float]
    data: Mapping[str, str]


class Trainer(Composer, Protocol):
    """Everything that the runner and the verifier ask of the floors below."""

    def to_dict(self, config: Any) -> dict[str, Any]:
        """`config` as plain JSON."""

    def train(
        self, config: Any, run_dir: Path | None = None, steps: int | None = None, pretrained: Path | None = None
    ) -> Trained:
        """Train, or go on, or return the result of a run that is done; `steps` stops earlier.

        `pretrained` is the finished run that a new training starts from.
        """

    def pretrain(self, config: Any, again: bool) -> Trained:
        """As `train`, one process at a time; `again` begins anew where today's code gives other first losses."""

    def find_pretrained(self, config: Any, data: Mapping[str, str], weights_sha256: str) -> Path | None:
        """The finished run of `config` that has these weights; None where it is not here."""

    def evaluate(self, run: Path, config: Any, carry: str | None) -> dict[str, float]:
        """The metrics of the run's last checkpoint under another config, on the test split."""

    def trivial(self, config: Any, asked: Mapping[str, Any]) -> Trivial:
        """What a trivial answer (`Gate.asked`) gives on the data of `config`, on the test rows of its evaluation."""

    def set_aside(self, config: Any, data: Mapping[str, str], pretrained: str | None = None) -> None:
        """Make the next `train` of `config` begin at step 0; UserError `run_in_use` while its run is worked in."""

    def costs(self, config: Any) -> dict[str, float]:
        """Parameters, active parameters, FLOPs a token and the controller's share of the model of `config`."""

    def hours(self, config: Any) -> float:
        """What training `config` is expected to take on the device it names."""

    def grouped(self, name: str) -> Trainer:
        """The same trainer; where its runs are mirrored in a tracker, they are under this group."""

"""The product's own training, evaluation and prices, as the runner and the replays ask for them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from efftx.config.compose import compose
from efftx.config.schema import to_dict
from efftx.core.scratch import scratch_folder
from efftx.core.work import part_of_work
from efftx.data.dataset import open_dataset
from efftx.data.glue import GlueConfig, fields_of
from efftx.evaluation.trivial import Question, trivial_answer
from efftx.plan import costs, price
from efftx.runs.pretrained import start_from
from efftx.runs.run_directory import default_run_dir, read_result, runs_root, set_aside
from efftx.study.composer import Composer, n_test_rows, read_by
from efftx.training.evaluation import evaluate_run
from efftx.training.loop import TrainResult, train

SCRATCH = "efftx-replay-"
"""How the folders of replays begin, which are removed."""


@dataclass(frozen=True)
class Trivial:
    """What a trivial answer gives: its metrics, and name, variant and checksum of the data."""

    metrics: Mapping[str, float]
    data: Mapping[str, str]


class Trainer(Composer):
    """Composes, trains, evaluates and prices. Another in its place is what the runner is tested with.

    `tracker` are overrides such as tracker.wandb=true: runs are mirrored as they say, and records do not know of it.
    """

    def __init__(self, tracker: Sequence[str] = ()) -> None:
        super().__init__()
        self._tracker = compose(list(tracker)).tracker if tracker else None

    def grouped(self, name: str) -> Trainer:
        """The same trainer; its runs are mirrored under this group, where the overrides name none."""
        if self._tracker is None or self._tracker.group is not None:
            return self
        other = copy.copy(self)
        other._tracker = replace(self._tracker, group=name)
        return other

    def to_dict(self, config: Any) -> dict[str, Any]:
        """`config` as plain JSON, as the run directory keeps it."""
        return to_dict(config)

    def train(
        self,
        config: Any,
        run_dir: Path | None = None,
        steps: int | None = None,
        pretrained: Path | None = None,
        perturbation: int | None = None,
    ) -> TrainResult:
        """Train, or go on, or return the result of a run that is done; `steps` and `perturbation`: see `loop.train`.

        `pretrained` is the finished run that a new training starts from.
        """
        config = config if pretrained is None else start_from(config, pretrained)
        config = config if self._tracker is None else replace(config, tracker=self._tracker)
        return train(config, run_dir, steps=steps, perturbation=perturbation)

    def pretrain(self, config: Any, again: bool) -> TrainResult:
        """As `train`, in one process at a time; `again` begins anew where today's code gives other first losses."""
        name = hashlib.sha256(json.dumps(self.to_dict(config), sort_keys=True).encode()).hexdigest()[:12]
        runs_root().mkdir(parents=True, exist_ok=True)
        with FileLock(runs_root() / f".pretraining-{name}.lock"), part_of_work("pre-training for"):
            done = self.train(config)
            if again:
                with scratch_folder(SCRATCH) as folder:
                    today = self.train(config, folder / "run", len(done.first_losses)).first_losses
                if list(today) != list(done.first_losses):
                    self.set_aside(config, done.data)
                    done = self.train(config)
        return done

    def find_pretrained(self, config: Any, data: Mapping[str, str], weights_sha256: str) -> Path | None:
        """The finished run of `config` that has these weights; None where it is not here."""
        run = self._run_of(config, data, None)
        result = read_result(run)
        return run if result is not None and result["weights_sha256"] == weights_sha256 else None

    def evaluate(self, run: Path, config: Any, carry: str | None) -> dict[str, float]:
        """The metrics of the run's last checkpoint under another config, on the test split."""
        return evaluate_run(run, config, carry=carry)

    def trivial(self, config: Any, asked: Mapping[str, Any]) -> Trivial:
        """What a trivial answer (`Gate.asked`) gives on the data of `config`, on the test rows that it evaluates.

        UserError for data that is missing or of another kind.
        """
        config = read_by(config, asked)
        data = open_dataset(config.data, config.objective)
        task = config.data.task if isinstance(config.data, GlueConfig) else ""
        fields = (lambda source: fields_of(task, source)) if task else None
        metrics = trivial_answer(data, Question(**asked, rows=n_test_rows(config) or None, fields=fields))
        identity = {"name": data.name, "variant": data.variant, "checksum": data.checksum}
        return Trivial(dict(sorted(metrics.items())), identity)

    def set_aside(self, config: Any, data: Mapping[str, str], pretrained: str | None = None) -> None:
        """Make the next `train` of `config` begin at step 0; UserError `run_in_use` while its run is worked in."""
        set_aside(self._run_of(config, data, pretrained))

    def costs(self, config: Any) -> dict[str, float]:
        """What stands beside its quality; see `plan.costs`."""
        return costs(config)

    def hours(self, config: Any) -> float:
        """What training `config` is expected to take on the device it names."""
        return float(price(config)["hours"])

    def _run_of(self, config: Any, data: Mapping[str, str], pretrained: str | None) -> Path:
        return default_run_dir(config.model, data["name"], self.hash(config, data, pretrained=pretrained))

"""A trainer without a model: what it returns is arithmetic on the overrides, so that runs cost nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from efftx.errors import UserError
from efftx.reproduce import runner
from efftx.reproduce.asked import Asked
from efftx.reproduce.price import Say
from efftx.reproduce.trainer import Trainer, Trivial
from efftx.study.experiment import Experiment
from efftx.study.records import Record, RecordStore
from efftx.training.loop import TrainResult

DATA = {"name": "fake", "variant": "fake[1]", "checksum": "0" * 64}


@dataclass(frozen=True)
class FakeConfig:
    keys: dict[str, str]
    seed: int


@dataclass
class FakeTrainer(Trainer):
    """`offset` is today's code: another value gives other losses. `broken` names values of `row=` that fail.

    `undone_by` are the perturbations that give the losses of no offset, `perturbations` those that were asked for.
    `pretrained` are the runs that were started from, `again` what was asked of each pre-training; `gone`: no run is
    found any more. `devices`: the `device=` of each training. `data` is what is at hand; None: nothing.
    """

    offset: float = 0.0
    undone_by: tuple[int, ...] = ()
    perturbations: list[int] = field(default_factory=list)
    broken: tuple[str, ...] = ()
    price: float = 1.0
    trained: list[tuple[str, int, int | None]] = field(default_factory=list)
    evaluated: list[tuple[str, str | None]] = field(default_factory=list)
    composed: int = 0
    aside: int = 0
    code: str = "one"
    pretrained: list[Path] = field(default_factory=list)
    again: list[tuple[str, bool]] = field(default_factory=list)
    gone: bool = False
    devices: list[str | None] = field(default_factory=list)
    data: dict[str, str] | None = field(default_factory=lambda: dict(DATA))
    runs: dict[Path, str] = field(default_factory=dict)

    def compose(self, overrides: Sequence[str], seed: int) -> FakeConfig:
        self.composed += 1
        keys = dict(o.split("=", 1) for o in overrides)
        if "impossible" in keys:
            raise UserError("unknown_key", "there is no key 'impossible'")
        return FakeConfig(keys, seed)

    def hash(
        self,
        config: FakeConfig,
        data: Mapping[str, str],
        made_on: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
    ) -> str:
        kept = {k: v for k, v in config.keys.items() if k != "size"}
        words = [kept, config.seed, dict(data), *([pretrained] if pretrained else [])]
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()

    def sources(self) -> str:
        return self.code

    def values(self, config: FakeConfig) -> dict[str, Any]:
        return {**config.keys, "default": self.code}

    def to_dict(self, config: FakeConfig) -> dict[str, Any]:
        return {**asdict(config), "dtype": "float32", "training": {"steps": 40}}

    def train(
        self,
        config: FakeConfig,
        run_dir: Path | None = None,
        steps: int | None = None,
        pretrained: Path | None = None,
        perturbation: int | None = None,
    ) -> TrainResult:
        self.perturbations += [] if perturbation is None else [perturbation]
        if pretrained is not None:
            self.pretrained.append(pretrained)
        name = config.keys["row"]
        self.trained.append((name, config.seed, steps))
        self.devices.append(config.keys.get("device"))
        if name in self.broken:
            raise RuntimeError(f"{name} broke")
        if self.data is None:
            raise UserError("missing_file", "data=fake needs files", "Get them.")
        quality = float(config.keys["quality"]) + config.seed
        return TrainResult(
            step=40,
            run=run_dir or Path(name),
            hash=self.hash(config, self.data, pretrained=None if pretrained is None else self.runs[pretrained]),
            resumed_from=None,
            metrics={"accuracy": quality},
            timings={"train_seconds": 1.0},
            first_losses=[5.0 + (0.0 if perturbation in self.undone_by else self.offset), 4.0 + config.seed, 3.0],
            curve=[{"step": 10, "accuracy": quality - 1}, {"step": 20, "accuracy": quality}],
            data=self.data,
            weights_sha256="w",
        )

    def pretrain(self, config: FakeConfig, again: bool) -> TrainResult:
        self.again.append((config.keys["row"], again))
        found = self.train(config)
        self.runs[found.run] = found.hash
        return found

    def trivial(self, config: FakeConfig, asked: Mapping[str, Any]) -> Trivial:
        return Trivial({"accuracy": 7.0 + self.offset, "loss": 2.0}, DATA)

    def trivial_hash(self, config: FakeConfig, asked: Mapping[str, Any], data: Mapping[str, str]) -> str:
        return json.dumps([dict(asked), dict(data)])

    def grouped(self, name: str) -> FakeTrainer:
        return self

    def find_pretrained(self, config: FakeConfig, data: Mapping[str, str], weights_sha256: str) -> Path | None:
        run = Path(config.keys["row"])
        self.runs[run] = self.hash(config, data)
        return None if self.gone else run

    def evaluate(self, run: Path, config: FakeConfig, carry: str | None) -> dict[str, float]:
        self.evaluated.append((config.keys["rounds"], carry))
        return {"accuracy": 10.0 * float(config.keys["rounds"]) + config.seed}

    def set_aside(self, config: FakeConfig, data: Mapping[str, str], pretrained: str | None = None) -> None:
        self.aside += 1

    def costs(self, config: FakeConfig) -> dict[str, float]:
        return {"parameters": 100 * float(config.keys["quality"]), "controller_share": 12.5}

    def hours(self, config: FakeConfig) -> float:
        return self.price


def record(row: str, seed: int, metrics: Mapping[str, float | None], *, size: str = "cpu", **rest: Any) -> Record:
    """A record of `paper/item` with one accuracy a column."""
    values = {column: {"accuracy": value} for column, value in metrics.items()}
    return Record(id="paper/item", row=row, seed=seed, size=size, config={}, hash="h", metrics=values, **rest)


def reproduce(
    experiments: Sequence[Experiment],
    size: str,
    seeds: list[int] | None = None,
    *,
    say: Say = print,
    store: RecordStore | None = None,
    trainer: Trainer | None = None,
    **asked: Any,
) -> list[dict[str, Any]]:
    """`runner.reproduce`, what is asked of it written out."""
    return runner.reproduce(experiments, Asked(size, seeds, **asked), say=say, store=store, trainer=trainer)

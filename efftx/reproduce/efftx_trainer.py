"""The product's own training, evaluation and prices, as the runner asks for them; imported when first asked."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

from efftx.config.compositions import composed
from efftx.core.scratch import scratch_folder
from efftx.core.work import part_of_work
from efftx.reproduce.trainer import Trained, Trivial


@dataclass(frozen=True)
class DataIdentity:
    """What of a data set enters a config's hash; taken from a record, so that no data set is opened to compare one."""

    name: str
    variant: str
    checksum: str


class EfftxTrainer:
    """The product's own training, composed through Hydra; composing is cached, since a seed changes one number.

    `tracker` are overrides such as tracker.wandb=true: runs are mirrored as they say, and records do not know of it.
    """

    def __init__(self, tracker: Sequence[str] = ()) -> None:
        self._composed: dict[tuple[str, ...], Any] = {}
        self._sources = ""
        self._tracker: Any = None
        if tracker:
            from efftx.config.compose import compose

            self._tracker = compose(list(tracker)).tracker

    def grouped(self, name: str) -> EfftxTrainer:
        """The group is the one that the overrides name, where they do."""
        if self._tracker is None or self._tracker.group is not None:
            return self
        other = copy.copy(self)
        other._tracker = replace(self._tracker, group=name)
        return other

    def compose(self, overrides: Sequence[str], seed: int) -> Any:
        """The config of these overrides, checked."""
        from efftx.config.compose import compose

        key = tuple(overrides)
        if key not in self._composed:
            self._composed[key] = composed(key, compose)
        return replace(self._composed[key], seed=seed)

    def hash(
        self,
        config: Any,
        data: Mapping[str, str],
        made_on: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
    ) -> str:
        """The product's config hash."""
        from efftx.config.hash import config_hash

        identity = DataIdentity(data["name"], data["variant"], data["checksum"])
        if made_on is not None and config.device == "auto":
            config = replace(config, device="cuda" if made_on.get("gpu") else "cpu")
        if made_on is not None and config.threads is None:
            config = replace(config, threads=made_on.get("threads"))
        return config_hash(config, cast(Any, identity), pretrained)

    def sources(self) -> str:
        """Over conf/ and the schema with its defaults."""
        from efftx.config.schema import Config
        from efftx.core.shipped import shipped
        from efftx.data import dataset

        if not self._sources:
            digest = hashlib.sha256()
            conf = shipped("conf")
            for path in sorted(conf.rglob("*.yaml")):
                digest.update(f"{path.relative_to(conf)}\n".encode() + path.read_bytes())
            for schema in (Config, *(dataset.find_source(name).config for name in dataset.names())):
                digest.update(repr(_schema(schema)).encode())
            self._sources = digest.hexdigest()
        return self._sources

    def to_dict(self, config: Any) -> dict[str, Any]:
        """As the run directory keeps it."""
        from efftx.config.schema import to_dict

        return to_dict(config)

    def train(
        self, config: Any, run_dir: Path | None = None, steps: int | None = None, pretrained: Path | None = None
    ) -> Trained:
        """`efftx.training.loop.train`."""
        from efftx.runs.pretrained import start_from
        from efftx.training.loop import train

        config = config if pretrained is None else start_from(config, pretrained)
        return train(config if self._tracker is None else replace(config, tracker=self._tracker), run_dir, steps=steps)

    def pretrain(self, config: Any, again: bool) -> Trained:
        """Under a lock beside the runs, so that rows side by side train the run that they share once."""
        from efftx.runs.run_directory import runs_root

        name = hashlib.sha256(json.dumps(self.to_dict(config), sort_keys=True).encode()).hexdigest()[:12]
        runs_root().mkdir(parents=True, exist_ok=True)
        with FileLock(runs_root() / f".pretraining-{name}.lock"), part_of_work("pre-training for"):
            done = self.train(config)
            if again:
                with scratch_folder("efftx-replay-") as folder:
                    today = self.train(config, folder / "run", len(done.first_losses)).first_losses
                if list(today) != list(done.first_losses):
                    self.set_aside(config, done.data)
                    done = self.train(config)
        return done

    def find_pretrained(self, config: Any, data: Mapping[str, str], weights_sha256: str) -> Path | None:
        """Where `train` would have put it."""
        from efftx.runs.run_directory import read_result

        run = self._run_of(config, data, None)
        result = read_result(run)
        return run if result is not None and result["weights_sha256"] == weights_sha256 else None

    def evaluate(self, run: Path, config: Any, carry: str | None) -> dict[str, float]:
        """`efftx.training.evaluation.evaluate_run`."""
        from efftx.training.evaluation import evaluate_run

        return evaluate_run(run, config, carry=carry)

    def trivial(self, config: Any, asked: Mapping[str, Any]) -> Trivial:
        """`efftx.reproduce.trivial.answer`."""
        from efftx.reproduce.trivial import answer

        return answer(config, asked)

    def trivial_hash(self, config: Any, asked: Mapping[str, Any], data: Mapping[str, str]) -> str:
        """`efftx.reproduce.trivial.trivial_hash`."""
        from efftx.reproduce.trivial import trivial_hash

        return trivial_hash(config, asked, data)

    def check_measure(self, name: str) -> None:
        """`efftx.reproduce.measures.check_name`."""
        from efftx.reproduce.measures import check_name

        check_name(name)

    def set_aside(self, config: Any, data: Mapping[str, str], pretrained: str | None = None) -> None:
        """`efftx.runs.run_directory.set_aside`."""
        from efftx.runs.run_directory import set_aside

        set_aside(self._run_of(config, data, pretrained))

    def costs(self, config: Any) -> dict[str, float]:
        """`efftx.plan.costs`."""
        from efftx.plan import costs

        return costs(config)

    def hours(self, config: Any) -> float:
        """`efftx.plan`'s price."""
        from efftx.plan import price

        return float(price(config)["hours"])

    def _run_of(self, config: Any, data: Mapping[str, str], pretrained: str | None) -> Path:
        from efftx.runs.run_directory import default_run_dir

        return default_run_dir(config.model, data["name"], self.hash(config, data, pretrained=pretrained))


def _schema(schema: Any) -> list[tuple[str, str, Any]]:
    """Name, type and default of every field; the defaults of nested nodes show in their own representation."""
    return [
        (f.name, str(f.type), f.default if f.default_factory is dataclasses.MISSING else f.default_factory())
        for f in dataclasses.fields(schema)
    ]

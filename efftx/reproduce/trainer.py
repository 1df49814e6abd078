"""What the runner asks of training, and the real thing behind it, imported when it is first asked."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast


@dataclass(frozen=True)
class DataIdentity:
    """What of a data set enters a config's hash; taken from a record, so that no data set is opened to compare one."""

    name: str
    variant: str
    checksum: str


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


class Trainer(Protocol):
    """Everything that the runner, the verifier and `list` ask of the floors below."""

    def compose(self, overrides: Sequence[str], seed: int) -> Any:
        """The resolved config of these overrides at `seed`; UserError where they do not compose."""

    def hash(self, config: Any, data: Mapping[str, str], made_on: Mapping[str, Any] | None = None) -> str:
        """The hash of `config` on a data set of this name, variant and checksum.

        What the config leaves to the machine (device, threads) is as in the environment `made_on`, where it is given.
        """

    def sources(self) -> str:
        """A digest of all that composing reads beside the overrides; where it is the same, so is what is composed."""

    def to_dict(self, config: Any) -> dict[str, Any]:
        """`config` as plain JSON."""

    def train(self, config: Any, run_dir: Path | None = None, steps: int | None = None) -> Trained:
        """Train, or go on, or return the result of a run that is done; `steps` stops earlier."""

    def evaluate(self, run: Path, config: Any, carry: str | None) -> dict[str, float]:
        """The metrics of the run's last checkpoint under another config, on the test split."""

    def set_aside(self, config: Any, data: Mapping[str, str]) -> None:
        """Make the next `train` of `config` begin at step 0."""

    def hours(self, config: Any) -> float:
        """What training `config` is expected to take on the device it names."""


class EfftxTrainer:
    """The product's own training, composed through Hydra; composing is cached, since a seed changes one number."""

    def __init__(self) -> None:
        self._composed: dict[tuple[str, ...], Any] = {}
        self._sources = ""

    def compose(self, overrides: Sequence[str], seed: int) -> Any:
        """The config of these overrides, checked."""
        from efftx.config import compose

        key = tuple(overrides)
        if key not in self._composed:
            self._composed[key] = compose(list(overrides))
        return replace(self._composed[key], seed=seed)

    def hash(self, config: Any, data: Mapping[str, str], made_on: Mapping[str, Any] | None = None) -> str:
        """The product's config hash."""
        from efftx.config_hash import config_hash

        identity = DataIdentity(data["name"], data["variant"], data["checksum"])
        if made_on is not None and config.device == "auto":
            config = replace(config, device="cuda" if made_on.get("gpu") else "cpu")
        if made_on is not None and config.threads is None:
            config = replace(config, threads=made_on.get("threads"))
        return config_hash(config, cast(Any, identity))

    def sources(self) -> str:
        """Over conf/ and the schema with its defaults."""
        from efftx.config import Config
        from efftx.data import dataset
        from efftx.shipped import shipped

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
        from efftx.config import to_dict

        return to_dict(config)

    def train(self, config: Any, run_dir: Path | None = None, steps: int | None = None) -> Trained:
        """`efftx.training.loop.train`."""
        from efftx.training.loop import train

        return train(config, run_dir, steps=steps)

    def evaluate(self, run: Path, config: Any, carry: str | None) -> dict[str, float]:
        """`efftx.training.loop.evaluate_run`."""
        from efftx.training.loop import evaluate_run

        return evaluate_run(run, config, carry=carry)

    def set_aside(self, config: Any, data: Mapping[str, str]) -> None:
        """Move the run's directory to `<name>.stale`, in place of an earlier one."""
        from efftx.training.run_directory import default_run_dir

        run = default_run_dir(config.model, config.data.name, self.hash(config, data))
        if run.exists():
            aside = run.with_name(f"{run.name}.stale")
            shutil.rmtree(aside, ignore_errors=True)
            run.rename(aside)

    def hours(self, config: Any) -> float:
        """`efftx.plan`'s price."""
        from efftx.plan import price

        return float(price(config)["hours"])


def _schema(schema: Any) -> list[tuple[str, str, Any]]:
    """Name, type and default of every field; the defaults of nested nodes show in their own representation."""
    return [
        (f.name, str(f.type), f.default if f.default_factory is dataclasses.MISSING else f.default_factory())
        for f in dataclasses.fields(schema)
    ]

"""Replays: the beginning of a record once more with today's code, compared with what the record says.

A training gives the losses of its first steps again, a measure the numbers of it that are no timing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from efftx.core.scratch import scratch_folder
from efftx.errors import NotFiniteError, UserError
from efftx.machine.devices import environment
from efftx.reproduce.measures import measure_named
from efftx.reproduce.trainer import SCRATCH, Trainer
from efftx.study.experiment import Experiment
from efftx.study.measures import replayed_part
from efftx.study.records import Record, RecordStore, Verification
from efftx.study.status import FRESH, NOT_REPLAYABLE, RECOUNTED, STALE, measure_parameters, status_of
from efftx.study.sweeps import Run, resolved
from efftx.training.loop import N_FIRST_LOSSES

SAME_BITS = ("torch", "threads", "processor", "instructions", "gpu")
"""What two environments must have in common for a replay to be compared bit for bit."""

# Where one of them differs, sums are taken in another order. In float32 that moves the loss of the first step by about
# 1e-7 of itself, and Adam's first updates, of the size of the rate whatever the gradient's, multiply it; half precision
# rounds each activation to 3 or 2 digits. A changed formula moves the losses by far more.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-3, "bfloat16": 2e-2}

# A choice (a hash bucket, an argmax) between two numbers that are equal but for rounding falls differently there, and
# moves the losses by more than that, though by little. Such a training is replayed again from its first weights
# perturbed by the rounding of a float, in so many draws: where one of them gives the recorded losses, and not those of
# today's first replay, a rounding alone makes the difference.
N_PERTURBATIONS = 8
OF_A_CHOICE = 1e-3

_NOT_HERE = ("missing_file", "no_network", "other_data", "no_device")
_SAID = ("processor", "instructions", "gpu", "torch", "threads", "git_commit", "git_clean")


class NotAtHandError(UserError):
    """A record cannot be replayed here: the data or the device that it was trained on is not at hand."""


@dataclass(frozen=True)
class _Replayed:
    recorded: list[float]
    again: list[float]
    of: str = ""
    counted: bool = False


def replay(experiment: Experiment, record: Record, trainer: Trainer, store: RecordStore) -> Verification:
    """Replay the beginning of `record` with today's code, in a folder that is then removed; the result is stored.

    Bit for bit where torch, threads, processor and device are the record's, else within TOLERANCE of the losses, in one
    of N_PERTURBATIONS where a rounding alone moves them by more; counts always bit for bit. Of a record that
    started from a pre-trained run the beginning of the pre-training is replayed, and its own too where that run's
    weights are still here. NotAtHandError, and nothing stored, where the record's data or GPU is not at hand.
    """
    run = _run_of(record)
    status = status_of(experiment, run, trainer, store, replayed=False)
    if status.word == STALE:
        verification = Verification(record.hash, STALE, status.why, False)
    elif (at := resolved(experiment, run, store)) is None:
        verification = Verification(record.hash, NOT_REPLAYABLE, status.why, False)
    elif (replayed := _replayed(at, record, trainer)) is None:
        verification = Verification(record.hash, NOT_REPLAYABLE, "a timing comes out differently each time", False)
    elif why := _other_costs(at, record, trainer):
        verification = Verification(record.hash, STALE, f"{RECOUNTED}: {why}", True)
    else:
        # Only now: the replay sets the number of threads that its losses came from.
        here = asdict(environment())
        exact = replayed.counted or all(here.get(key) == record.environment.get(key) for key in SAME_BITS)
        verification = _compare(record, replayed, exact)
        if verification.verdict == STALE and not exact and _is_training(experiment, record):
            verification = _perturbed(at, record, trainer, replayed) or verification
    if not verification.environment:
        here = asdict(environment())
        verification.environment = {key: here[key] for key in _SAID}
    store.write_verification(record, verification)
    return verification


def _other_costs(experiment: Experiment, record: Record, trainer: Trainer) -> str:
    """The first of a training's costs that today's code counts otherwise, in words; empty where there is none."""
    if not record.costs:
        return ""
    config = trainer.compose(experiment.row_overrides(record.row, record.size), record.seed)
    today = trainer.costs(config)
    changed = [name for name, value in record.costs.items() if today.get(name) != value]
    return f"{changed[0]} was {record.costs[changed[0]]!r}, is {today.get(changed[0])!r}" if changed else ""


def _run_of(record: Record) -> Run:
    return Run(record.row, record.seed, record.size, record.value)


def _is_training(experiment: Experiment, record: Record) -> bool:
    return record.row not in experiment.gates and experiment.kind != "measure"


def _replayed(experiment: Experiment, record: Record, trainer: Trainer) -> _Replayed | None:
    """What the record says and what today's code gives; None where nothing of it can be replayed."""
    try:
        if record.row in experiment.gates:
            return _trivial(experiment, record, trainer)
        if experiment.kind == "measure":
            return _measured(experiment, record)
        return _trained(experiment, record, trainer) if record.first_losses else None
    except UserError as error:
        if error.kind in _NOT_HERE:
            raise NotAtHandError(error.kind, error.message, error.hint) from error
        raise


def _trivial(experiment: Experiment, record: Record, trainer: Trainer) -> _Replayed:
    overrides = experiment.gate_overrides(record.row, record.size)
    answer = trainer.trivial(trainer.compose(overrides, record.seed), experiment.gates[record.row].asked())
    _check_data(record.data, answer.data)
    return _Replayed(record.first_losses, list(answer.metrics.values()))


def _measured(experiment: Experiment, record: Record) -> _Replayed | None:
    measure = measure_named(str(experiment.measure))
    parameters = measure_parameters(experiment, record.row, record.size)
    row_parameters = dict(experiment.rows[record.row].parameters)
    part = replayed_part(str(experiment.measure))
    if record.first_losses:
        again = measure.replay(parameters, record.seed, record.row, row_parameters) if measure.replay else []
        return _Replayed(record.first_losses, again, f"; {part}" if part else "", measure.counts)
    if measure.recount is None:
        return None
    recorded, again = measure.recount(
        parameters, record.row, row_parameters, {"metrics": record.metrics, "series": record.series}
    )
    return _Replayed(recorded, again, f"; {part}", True) if recorded else None


def _trained(experiment: Experiment, record: Record, trainer: Trainer, perturbation: int | None = None) -> _Replayed:
    device = _device_of(record)
    config = trainer.compose([*experiment.row_overrides(record.row, record.size), *device], record.seed)
    with scratch_folder(SCRATCH) as folder:
        before = record.pretraining
        if not before:
            result = trainer.train(config, folder / "run", len(record.first_losses), perturbation=perturbation)
            _check_data(record.data, result.data)
            return _Replayed(record.first_losses, list(result.first_losses))
        overrides = [*experiment.pretraining_overrides(record.row, record.size), *device]
        pretraining = trainer.compose(overrides, record.seed)
        first = trainer.train(pretraining, folder / "pretraining", N_FIRST_LOSSES, perturbation=perturbation)
        _check_data(before["data"], first.data)
        run = trainer.find_pretrained(pretraining, before["data"], before["weights_sha256"])
        if run is None:
            alone = "; of the pre-training, whose weights are not here to go on from"
            return _Replayed(before["first_losses"], list(first.first_losses), alone)
        result = trainer.train(config, folder / "run", N_FIRST_LOSSES, run, perturbation)
        _check_data(record.data, result.data)
        return _Replayed([*before["first_losses"], *record.first_losses], [*first.first_losses, *result.first_losses])


def _device_of(record: Record) -> list[str]:
    """The override that replays a record where it was made, on the CPU or on a GPU; none where that happens anyway."""
    here, then = environment().gpu, record.environment.get("gpu")
    if then and not here:
        raise UserError("no_device", f"It was made on {then}, and PyTorch finds no CUDA device here.")
    return ["device=cpu"] if here and not then else []


def _check_data(recorded: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Losses on other data say nothing about the code."""
    for key in ("variant", "checksum"):
        if recorded[key] != here[key]:
            message = f"The data here is {here['variant']}, sha256 {here['checksum'][:12]}"
            raise UserError(
                "other_data", f"{message}, the record's was {recorded['variant']}, sha256 {recorded['checksum'][:12]}."
            )


def _compare(record: Record, replayed: _Replayed, exact: bool) -> Verification:
    recorded, again = replayed.recorded, replayed.again
    if len(again) != len(recorded):
        why = f"the replay gave {len(again)} numbers in place of {len(recorded)}"
        return Verification(record.hash, STALE, why, exact, again)
    tolerance = 0.0 if exact else _tolerance(record)
    for i, (then, now) in enumerate(zip(recorded, again, strict=True)):
        if not math.isclose(then, now, rel_tol=tolerance, abs_tol=0.0):
            why = f"number {i + 1} of the replay was {then!r}, is {now!r}"
            return Verification(record.hash, STALE, why, exact, again)
    if recorded == again:
        return Verification(record.hash, FRESH, f"bit for bit{replayed.of}", True, again)
    how = f"within {tolerance:g} (another torch, processor, device or number of threads){replayed.of}"
    return Verification(record.hash, FRESH, how, False, again)


def _perturbed(experiment: Experiment, record: Record, trainer: Trainer, plain: _Replayed) -> Verification | None:
    """The first replay from perturbed weights that gives the recorded losses, and not those of `plain`; None: none."""
    if not _close(plain.recorded, plain.again, OF_A_CHOICE):
        return None
    for perturbation in range(N_PERTURBATIONS):
        try:
            perturbed = _trained(experiment, record, trainer, perturbation)
        except NotFiniteError:
            continue
        verification = _compare(record, perturbed, exact=False)
        if verification.verdict == FRESH and not _close(plain.again, perturbed.again, _tolerance(record)):
            verification.why += "; from weights perturbed by a rounding, which alone moves the losses by more"
            verification.exact = False
            return verification
    return None


def _close(then: list[float], now: list[float], tolerance: float) -> bool:
    return all(math.isclose(a, b, rel_tol=tolerance, abs_tol=0.0) for a, b in zip(then, now, strict=True))


def _tolerance(record: Record) -> float:
    return TOLERANCE.get(str(record.config.get("dtype", "float32")), TOLERANCE["float32"])

"""One bit of a file flipped, the file read as a command reads it, and the bit put back; many times, for every kind."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from efftx.cli import main
from efftx.config import compositions
from efftx.config.compose import compose
from efftx.config.schema import to_dict
from efftx.core.artifact import checksum_file, read_document
from efftx.core.cache import cache_root
from efftx.data.dataset import open_dataset
from efftx.data.prepared import damage, prepared_root, read_prepared
from efftx.data.tokenizer import VOCABULARY_FILE
from efftx.decoding import latency
from efftx.errors import UserError
from efftx.native import library
from efftx.runs.checkpoint import MANIFEST_FILE, MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, load_latest, weights_sha256
from efftx.runs.pretrained import read_vocabulary_file
from efftx.runs.run_directory import (
    METRICS_FILE,
    RESULT_FILE,
    TIMINGS_FILE,
    RunDirectory,
    read_config,
    read_metrics,
    read_result,
    read_timings,
)
from efftx.study.records import RecordStore, Verification
from efftx.training.loop import train
from tests.soak.world import DATA, ITEM, REPRODUCTION, TRAINING

NOTICED, HARMLESS, WRONG, TRACEBACK = "noticed", "harmless", "silently wrong", "traceback"
COLUMNS = (NOTICED, HARMLESS, WRONG, TRACEBACK)


@dataclass(frozen=True)
class Kind:
    """A kind of file: `read` gives what a command makes of it, and whether it said that something is wrong."""

    name: str
    files: list[Path]
    read: Callable[[Path], tuple[Any, bool]]


def flip_all(n: int, seed: int = 0) -> dict[str, Counter[str]]:
    """For every kind, what came of `n` flipped bits."""
    found = {}
    for kind in kinds():
        print(f"{kind.name}: {n} bits", file=sys.stderr, flush=True)
        found[kind.name] = flip(kind, n, random.Random(f"{seed} {kind.name}"))
    return found


def flip(kind: Kind, n: int, draw: random.Random) -> Counter[str]:
    """What came of `n` flipped bits in the files of one kind, every file alike often, every bit of it alike likely."""
    found: Counter[str] = Counter()
    right = {}
    for file in kind.files[:n]:
        right[file], told = kind.read(file)
        assert not told, f"{file} is damaged before anything was done to it"
    for number in range(n):
        file = kind.files[number % len(kind.files)]
        whole = file.read_bytes()
        changed = bytearray(whole)
        bit = draw.randrange(8 * len(whole))
        changed[bit // 8] ^= 1 << bit % 8
        _put(file, changed)
        outcome, why = judged(kind, file, right[file])
        found[outcome] += 1
        if outcome in (WRONG, TRACEBACK):
            print(f"{outcome}: {file}, bit {bit} {why}", flush=True)
        _put(file, whole)
    return found


def _put(file: Path, data: bytes | bytearray) -> None:
    """A new file in its place: this process has the library loaded, and must not have it changed under its feet."""
    new = file.with_name(f"{file.name}.flipped")
    new.write_bytes(data)
    new.replace(file)


def judged(kind: Kind, file: Path, right: Any) -> tuple[str, str]:
    """What reading `file` came to, where `right` is what it should give."""
    try:
        value, told = kind.read(file)
    except UserError:
        return NOTICED, ""
    except Exception as error:
        return TRACEBACK, repr(error)
    if told:
        return NOTICED, ""
    return (HARMLESS, "") if value == right else (WRONG, f"gives {value!r}"[:300])


def kinds() -> list[Kind]:
    """Every kind of file that efftx reads back, made by efftx itself."""
    run = _trained()
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    prepared = [folder for folder in sorted(prepared_root().iterdir()) if folder.is_dir()]
    arrays = [file for folder in prepared for file in sorted(folder.iterdir()) if file.name != "meta.json"]
    resumable = _copied_without_result(run)
    records, verified = _recorded()
    library.kernels()
    libraries = sorted((cache_root() / "native").glob("*.so"))
    latency.read_rate()
    rates = sorted(Path(latency.tempfile.gettempdir()).glob("efftx-read-rate*"))
    composed = sorted((cache_root() / "compositions").rglob("*.json"))
    vocabulary = run / VOCABULARY_FILE
    return [
        Kind("config.json", [run / "config.json"], lambda file: _entered(file.parent)),
        Kind("result.json", [run / RESULT_FILE], lambda file: (read_result(file.parent), False)),
        Kind("metrics.jsonl", [folder / METRICS_FILE for folder in (resumable, run)], _logged),
        Kind("timings.jsonl", [folder / TIMINGS_FILE for folder in (resumable, run)], _logged),
        Kind("checkpoint, tensors", [p / name for p in checkpoints for name in (MODEL_FILE, OPTIMIZER_FILE)], _loaded),
        Kind("checkpoint, JSON", [p / name for p in checkpoints for name in (STATE_FILE, MANIFEST_FILE)], _loaded),
        Kind("prepared meta.json", [folder / "meta.json" for folder in prepared], _prepared),
        Kind("prepared arrays", arrays, _prepared),
        Kind("vocabulary", [vocabulary, checksum_file(vocabulary)], lambda file: (read_vocabulary_file(run), False)),
        Kind("record", records, _in_store),
        Kind("verified replay", verified, _in_store),
        Kind("kernel library", [f for lib in libraries for f in (lib, checksum_file(lib))], _library),
        Kind("composition", composed, _composed),
        Kind("read rate", rates, _rate),
    ]


# ---- making them -----------------------------------------------------------------------------------------------------


def _trained() -> Path:
    return train(compose(TRAINING), silent=True).run


def _copied_without_result(run: Path) -> Path:
    copy = Path(shutil.copytree(run, run.with_name(f"{run.name}-again")))
    (copy / RESULT_FILE).unlink()
    return copy


def _recorded() -> tuple[list[Path], list[Path]]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(REPRODUCTION) == 0
        assert main(["list", ITEM]) == 0
    store = RecordStore()
    for record in store.read_all(ITEM):
        store.write_verification(record, Verification(record.hash, "fresh", "bit for bit", True, record.first_losses))
    return sorted((store.root / "records").rglob("*.json")), sorted((store.root / "verified").rglob("*.json"))


# ---- reading them, as a command does ---------------------------------------------------------------------------------


def _entered(run: Path) -> tuple[Any, bool]:
    result = read_result(run)
    assert result is not None
    with RunDirectory(run, _resolved(), result["hash"]):
        return read_config(run), False


@cache
def _resolved() -> dict[str, Any]:
    return to_dict(compose(TRAINING))


def _logged(file: Path) -> tuple[Any, bool]:
    """What a training makes of its logs that goes on, and `efftx compare` of those of one that is done."""
    run = file.parent
    if read_result(run) is None:
        return _resumed(run)
    return (read_metrics(run), read_timings(run)), False


def _resumed(run: Path) -> tuple[Any, bool]:
    found = read_config(run)
    assert found is not None
    with RunDirectory(run, *found) as directory:
        checkpoint = load_latest(directory.checkpoints, read_only=True)
        assert checkpoint is not None
        before = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "timings.jsonl")}
        try:
            told = directory.resume_at(checkpoint.meta["logs"])
            return (read_metrics(run), (run / "timings.jsonl").read_bytes()), bool(told)
        finally:
            for name, data in before.items():
                (run / name).write_bytes(data)


def _loaded(file: Path) -> tuple[Any, bool]:
    told: list[str] = []
    folder = file.parent
    others = [path for path in folder.parent.glob("step-*") if path != folder]
    with _hidden(others):
        found = load_latest(folder.parent, on_damage=told.append, read_only=True)
    if found is None:
        return None, bool(told)
    optimizer = (weights_sha256(found.optimizer.tensors), found.optimizer.numbers, found.optimizer.groups)
    return (found.step, weights_sha256(found.model), found.meta, optimizer), bool(told)


@contextlib.contextmanager
def _hidden(paths: list[Path]) -> Iterator[None]:
    """The other checkpoints out of the way, so that it is this one that is loaded."""
    moved = [(path, path.rename(path.with_name(f"other-{path.name}"))) for path in paths]
    try:
        yield
    finally:
        for path, aside in moved:
            aside.rename(path)


def _prepared(file: Path) -> tuple[Any, bool]:
    if damage(file.parent) is not None:  # prepared anew by whatever command reads it next
        return None, True
    prepared = read_prepared(file.parent)
    assert prepared is not None
    config = compose(["model=scaling", "size=smoke", *DATA])
    dataset = open_dataset(config.data, config.objective)
    batch = dataset.batch("train", 0, 0, 2)
    return (prepared.meta, dataset.variant, dataset.checksum, batch.tokens_BL.tolist()), False


def _in_store(file: Path) -> tuple[Any, bool]:
    store = RecordStore()
    records = store.read_all(ITEM)
    replays = [store.verification(record) for record in records]
    return ([asdict(r) for r in records], [r and asdict(r) for r in replays]), bool(store.damaged([ITEM]))


def _library(file: Path) -> tuple[Any, bool]:
    name = file.name.removesuffix(".sha256")
    return None, not library._is_intact(file.with_name(name))


def _composed(file: Path) -> tuple[Any, bool]:
    found = compositions._read(file)
    return found, found is None


def _rate(file: Path) -> tuple[Any, bool]:
    found = read_document(file)
    return found, found is None


def quiet() -> None:
    """A damaged checkpoint's warning is an answer here, not a line on the screen."""
    warnings.simplefilter("ignore")

"""The ledger of keys: each key of the schema is read by the code that trains, or it is refused as dead."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import efftx.config
from efftx.config.checks import check_config, dead_reason, refuse_dead_keys
from efftx.config.compose import compose, known_keys
from efftx.config.hash import OUTSIDE, hashed_values
from efftx.config.schema import Config
from efftx.config.sizes import is_sparse
from efftx.errors import UserError
from efftx.training.loop import train

SHORT = ["size=smoke", "schedule.warmup=1", "training.steps=2", "training.batch_size=2", "evaluation.batches=1"]
DIGITS = ["data=copy_add", "data.length=24", "data.max_digits=8", "data.eval_min_digits=10", "data.eval_max_digits=20"]
TEXT = "".join(f"paragraph {i} of a text with words enough, {i * i} of them.\n\n" for i in range(400))
BASES = {
    "reformer": ["model=reformer", "data=duplicate"],
    "local": ["model=transformer", "attention=[local,full]", "data=duplicate", "optimizer.name=adamw"],
    "strided": ["model=sparse_transformer", "data=photos", "d_qk=8", "strided.mode=merged"],
    "fixed": ["model=sparse_transformer", "data=duplicate", "attention=[fixed,local]", "local.window=8"],
    "pictures": ["model=transformer", "data=imagenet64", "data.path=efftx:samples/photos"],
    "sound": ["model=transformer", "data=music"],
    "digits": ["model=scaling", *DIGITS, "positions.kind=digits", "optimizer.name=adafactor", "schedule.name=rsqrt"],
    "coupled": ["model=scaling", *DIGITS, "positions.kind=coupled", "data.stages=[2,4]", "data.stage_steps=1"],
    "sparse": ["model=terraformer", "sparse_ff.N=4", "sparse_qkv.S=4", "sparse_loss.S=2", "sru.n_layers=1"],
    "low rank": ["model=scaling", "sparse_qkv.S=4", "sparse_qkv.variant=low_rank", "schedule.name=linear"],
    "crossed": ["model=scaling", "sparse_qkv.S=4", "share_qk=true"],
    "own text": ["model=transformer", "data=text", "data.path=TEXT", "data.tokenizer=unigram", "data.vocab_size=100"],
    "bytes": ["model=transformer", "data=enwik8", "data.path=TEXT", "data.length=64"],
    "rows": ["model=scaling", "data=jsonl", "data.path=ROWS", "data.tokenizer=unigram", "data.vocab_size=100"],
    "pairs": ["model=scaling", "data=glue", "data.path=efftx:samples/glue", "data.length=128"],
    "summaries": ["model=scaling", "data=summarization", "data.path=efftx:samples/summarization", "data.length=64"],
    "translation": ["model=scaling", "data=wmt14", "data.path=efftx:samples/wmt14", "evaluation.beam=2"],
    "c4": ["model=scaling", "data=c4", "data.path=efftx:samples/c4"],
}
LABELS = {"model", "size"}
"""What a run is called by: no code reads it, and a preset has been chosen by it."""


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNS", "RESULTS", "DATA"):
        monkeypatch.setenv(f"EFFTX_{name}", str(tmp_path / name.lower()))
    # What a finished training tells of decoding is no part of this.
    monkeypatch.setattr("efftx.training.loop.latency_of", lambda *arguments: {})


def words_of(base: str, folder: Path) -> list[str]:
    (folder / "own.txt").write_text(TEXT)
    (folder / "own.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in TEXT.splitlines() if line))
    own = {"data.path=TEXT": f"data.path={folder / 'own.txt'}", "data.path=ROWS": f"data.path={folder / 'own.jsonl'}"}
    return [*SHORT, *(own.get(word, word) for word in BASES[base])]


def nodes_of(config: Config) -> dict[str, Any]:
    """Prefix of the keys -> the node that holds them."""
    inner = {f"{f.name}.": getattr(config, f.name) for f in dataclasses.fields(config)}
    return {"": config} | {prefix: node for prefix, node in inner.items() if dataclasses.is_dataclass(node)}


SETTINGS = Path(efftx.config.__file__).parent
ASIDE = (SETTINGS, Path(dataclasses.__file__))
"""Code that composes, checks, hashes or copies a configuration whole: what it reads is read by no training."""
ANSWERS = (SETTINGS / "schema.py", SETTINGS / "sizes.py")
"""Properties and sizes of a configuration, among that code: who asks for them reads the keys that they read."""


@functools.cache
def is_aside(file: str) -> bool:
    return Path(file) not in ANSWERS and any(Path(file).is_relative_to(place) for place in ASIDE)


def is_of_training(frame: FrameType | None) -> bool:
    """Whether what `frame` reads is read by a training: neither it nor a caller of it is code set aside."""
    while frame:
        if is_aside(frame.f_code.co_filename):
            return False
        frame = frame.f_back
    return True


@contextlib.contextmanager
def watched(config: Config) -> Iterator[set[str]]:
    """The keys of `config` that are read meanwhile, but for what composes, checks, hashes or copies it whole."""
    read: set[str] = set()
    prefix_of = {type(node): prefix for prefix, node in nodes_of(config).items()}

    def reader(schema: type) -> Any:
        names = {field.name for field in dataclasses.fields(schema)}

        def read_attribute(self: Any, name: str) -> Any:
            if name in names and is_of_training(sys._getframe(1)):
                read.add(prefix_of[schema] + name)
            return object.__getattribute__(self, name)

        return read_attribute

    with pytest.MonkeyPatch.context() as patched:
        for schema in prefix_of:
            patched.setattr(schema, "__getattribute__", reader(schema))
        yield read


def live_keys(config: Config) -> set[str]:
    keys = {
        prefix + field.name
        for prefix, node in nodes_of(config).items()
        for field in dataclasses.fields(node)
        if not dataclasses.is_dataclass(getattr(node, field.name))
    }
    return {key for key in keys if dead_reason(config, key) is None}


def test_what_checks_hashes_or_copies_a_configuration_reads_none_of_its_keys(tmp_path: Path) -> None:
    config = compose(words_of("sparse", tmp_path))
    with watched(config) as read:
        check_config(config)
        hashed_values(config)
        dead_reason(config, "sparse_ff.token_bias")
        dataclasses.replace(config)
    assert read == set()


def test_a_key_that_a_property_or_a_size_reads_is_read_by_who_asks(tmp_path: Path) -> None:
    assert all(place.exists() for place in (*ASIDE, *ANSWERS))
    config = compose(words_of("sparse", tmp_path))
    with watched(config) as read:
        _ = config.width_of_head, is_sparse(config), config.seed
    assert read == {"d_head", "d_model", "n_heads", "sparse_ff", "sparse_ff.N", "seed"}


@pytest.mark.parametrize("base", BASES)
def test_every_live_key_is_read_by_a_training(base: str, tmp_path: Path) -> None:
    config = compose(words_of(base, tmp_path))
    with watched(config) as read:
        train(config, silent=True)
    assert live_keys(config) - read - LABELS == set()


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    folder = tmp_path_factory.mktemp("own")
    found = {base: compose(words_of(base, folder)) for base in BASES}
    mirrored = dataclasses.replace(found["reformer"].tracker, wandb=True)
    sharded = dataclasses.replace(found["reformer"].distributed, strategy="fsdp")
    return found | {
        "mirrored": dataclasses.replace(found["reformer"], tracker=mirrored),
        "sharded": dataclasses.replace(found["reformer"], distributed=sharded),
    }


def test_every_key_of_the_schema_is_live_in_one_of_these(configs: dict[str, Config]) -> None:
    live = set().union(*(live_keys(config) for config in configs.values()))
    assert set(known_keys()) - live == set()


def test_another_value_of_a_live_key_is_another_run_and_a_dead_key_is_refused(configs: dict[str, Config]) -> None:
    for config in configs.values():
        live, reference = live_keys(config), hashed_values(config)
        for prefix, node in nodes_of(config).items():
            for field in dataclasses.fields(node):
                key, value = prefix + field.name, getattr(node, field.name)
                if dataclasses.is_dataclass(value) or key in ("pretrained", "data.name"):
                    continue
                if key not in live:
                    with pytest.raises(UserError, match="would change nothing"):
                        refuse_dead_keys(config, [key])
                    continue
                changed = dataclasses.replace(node, **{field.name: another(key, value)})
                other = dataclasses.replace(config, **{prefix[:-1]: changed}) if prefix else changed
                assert (hashed_values(other) == reference) is is_outside(key), key


def is_outside(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in OUTSIDE)


def another(key: str, value: Any) -> Any:
    """A value that is not `value`, of its kind."""
    if key == "device":
        return "cuda:1"
    if key == "threads":
        return 77
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case list():
            return [*value, *(value[:1] or [2])]
        case None:
            return 3
    return f"{value}x"

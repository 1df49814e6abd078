"""Every key of the schema under hostile values: a configuration that holds them, or one sentence; never a traceback."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efftx.cli import main
from efftx.config.checks import check_config
from efftx.config.compose import compose, from_dict, known_keys
from efftx.config.schema import Config, to_dict
from efftx.config.values import RANGES, check_values, kind_of, values_of
from efftx.data import dataset as data_sets
from efftx.errors import UserError

BASES = {
    "reformer": ["model=reformer", "data=duplicate", "size=smoke"],
    "terraformer": ["model=terraformer", "size=smoke", "sparse_ff.N=4", "sparse_qkv.S=4", "sru.n_layers=1"],
    "scaling": ["model=scaling", "data=copy_add", "size=smoke", "data.length=512"],
    "transformer": ["model=transformer", "data=glue", "size=smoke", "stack=encoder_decoder"],
}
HOSTILE_NUMBERS = [
    *(0, -1, 1, 2, 3, 7, 2**31, 2**63 - 1, 2**63, 10**20, -(10**20), 10**5000),
    *(0.5, -0.5, 1.0, 1e-40, 1e300, math.nan, math.inf, -math.inf),
]
HOSTILE_WORDS = [
    *("0", "-1", "1", "2", "-0", "1.5", "nan", ".nan", "inf", "-inf", "1e400", "1e-400", "1e20", "9" * 20, "9" * 5000),
    *("null", "none", "true", "''", "' '", "[]", "[1]", "[nan]", "[null]", "[-1]", "{}", "{a:1}", "[[1]]", "abc", "é"),
    *("${oc.env:NOPE}", "${nope}", "${seed}", "${.x}", "${nope:1}", "${oc.env:}", "${oc.decode:'['}", "${}", "${lsh}"),
    *("${oc.decode:'[1]'}", "${oc.select:nope}", "${hydra:job.num}", "${by_size:1}", "???", "a,b", "range(1,3)"),
    *("glob(*)", "shuffle(1,2)", "int(x)", "float(nan)", "extend_list(1)", "a=b", "\\x00", "'\x01'", "/", "..", "["),
    *("[" * 2000 + "]" * 2000, "0x10", "1_000", "@", "!!python/object:x", "~"),
]


@pytest.fixture(scope="module")
def bases() -> dict[str, Config]:
    return {name: compose(words) for name, words in BASES.items()}


def with_value(config: Any, key: str, value: Any) -> Any:
    """`config` with one dotted key set."""
    head, _, rest = key.partition(".")
    return dataclasses.replace(config, **{head: with_value(getattr(config, head), rest, value) if rest else value})


def refusal(action: Callable[[], object]) -> str | None:
    """What a user is told; None where nothing is refused."""
    try:
        action()
    except UserError as error:
        return error.message
    return None


def number_keys(schema: type, prefix: str = "") -> dict[str, Any]:
    """Each key whose value is a number or a list of numbers, with its annotation."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(schema).items():
        if name == "data" and schema is Config:
            for source in data_sets.names():
                found |= number_keys(data_sets.find_source(source).config, "data.")
        elif dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            found |= number_keys(hint, f"{prefix}{name}.")
        elif {int, float} & {hint, *get_args(hint)}:
            found[prefix + name] = hint
    return found


def test_every_number_of_the_schema_has_a_range_or_is_a_count() -> None:
    keys = number_keys(Config)
    assert RANGES.keys() <= keys.keys()
    unlisted = {key: hint for key, hint in keys.items() if key not in RANGES}
    floats = {key for key, hint in unlisted.items() if float in {hint, *get_args(hint)}}
    assert not {key for key in floats if not key.startswith("data.")}


def test_the_ranges_hold_what_the_schema_and_the_presets_say(bases: dict[str, Config]) -> None:
    for config in bases.values():
        check_values(config)


@pytest.mark.parametrize("base", BASES)
def test_every_number_under_every_hostile_value_is_refused_or_holds(base: str, bases: dict[str, Config]) -> None:
    config = bases[base]
    here = {key for key, _ in values_of(config)} | {"n_encoder_layers", "d_head", "threads"}
    for key, hint in number_keys(Config).items():
        if key not in here:
            continue
        for value in HOSTILE_NUMBERS:
            hostile = with_value(config, key, [value, value] if get_origin(hint) is list else value)
            told = refusal(lambda config=hostile: check_config(config))
            if told is None:
                assert math.isfinite(value), f"{key}={value} of {base} is accepted"
                assert abs(value) < 2**63 or float in (hint, *get_args(hint)), f"{key} of {base} is beyond 64 bits"
            else:
                assert 0 < len(told) < 400


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_is_refused_by_the_name_of_its_key(value: str) -> None:
    floats = [key for key, hint in number_keys(Config).items() if float in (hint, *get_args(hint))]
    assert {"training.clip_norm", "evaluation.stop_at_accuracy", "optimizer.lr", "optimizer.betas"} <= set(floats)
    for key in floats:
        word = f"[{value},{value}]" if key == "optimizer.betas" else value
        live = {"data.": ["model=terraformer"], "sparse_ff.": ["model=terraformer", "sparse_ff.N=4"]}
        words = next((w for prefix, w in live.items() if key.startswith(prefix)), ["model=reformer"])
        words += {"decay_exponent": ["optimizer.name=adafactor"], "weight_decay": ["optimizer.name=adamw"]}.get(
            key.removeprefix("optimizer."), []
        )
        words += ["model=scaling", "data=grammar", "evaluation.beam=2"] if key == "evaluation.length_penalty" else []
        words += ["positions.kind=digits"] if key in ("positions.start_from_zero", "positions.base_dropout") else []
        with pytest.raises(UserError, match="must be a finite number") as caught:
            compose([*words, "size=smoke", f"{key}={word}"])
        assert caught.value.message.startswith(f"{key}=")


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    base=st.sampled_from(sorted(BASES)),
    key=st.sampled_from([*known_keys(), "model", "data", "size", "preset", "lsh", "positions", "data.nope", "seed.x"]),
    word=st.sampled_from(HOSTILE_WORDS) | st.text(max_size=8) | st.integers().map(str) | st.floats().map(str),
    prefix=st.sampled_from(["", "", "", "+", "++", "~"]),
)
def test_a_hostile_word_composes_to_what_comes_back_from_json_or_is_refused(
    base: str, key: str, word: str, prefix: str
) -> None:
    words = [*BASES[base], f"{prefix}{key}={word}"]
    told = refusal(lambda: compose(words))
    if told is None:
        config = compose(words)
        assert from_dict(to_dict(config)) == config
    else:
        assert 0 < len(told) < 1500


@pytest.mark.parametrize(
    "words",
    [
        ["threads=100000"],
        ["threads=0"],
        ["seed=-1"],
        ["seed=9223372036854775808"],
        [f"seed={10**30}"],
        ["training.steps=100000000000000000000"],
        ["training.clip_norm=nan"],
        ["evaluation.stop_at_accuracy=nan"],
        ["evaluation.stop_at_accuracy=101"],
        ["run_dir='a\x01b'"],
        ["device=cpu:1"],
        ["device=mps"],
        ["device=cuda:x"],
        ["device=cuda:-1"],
        ["device=cuda:1000000"],
        ["dtype=float8"],
        ["seed=${oc.env:EFFTX_NOT_THERE}"],
        ["seed=${nope}"],
        ["seed=${seed}"],
    ],
)
@pytest.mark.parametrize("command", ["train", "plan", "ablate"])
def test_the_command_line_answers_with_one_message(
    command: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *BASES["reformer"], *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert words[0].partition("=")[0] in err


@pytest.mark.parametrize(
    ("device", "fits"),
    [("auto", True), ("cpu", True), ("cuda", True), ("cuda:0", True), ("cuda:12", True), ("cuda:01", False)],
)
def test_a_device_composes_whatever_the_machine_has(device: str, fits: bool) -> None:
    words = [*BASES["reformer"], f"device={device}"]
    if fits:
        assert compose(words).device == device
    else:
        with pytest.raises(UserError, match="is not a device"):
            compose(words)


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("training.steps=1e3", "training.steps=1e3 is not written as a whole", "Write training.steps=1000."),
        (
            "data.n_symbols=1.5",
            "data.n_symbols=1.5 is not written as a whole number.",
            "without a point or an exponent",
        ),
        ("reversible.enabled=2", "reversible.enabled=2 is neither true nor false.", "Write reversible.enabled=true or"),
        ("reversible={enabled: 2}", "reversible.enabled=2 is neither true nor false.", ""),
        ('share_qk="yes please"', 'share_qk="yes please" is neither true nor false.', ""),
        ("tracker.wandb=-1", "tracker.wandb=-1 is neither true nor false.", ""),
        (
            "training.steps=0",
            "training.steps=0 trains nothing, and schedule.name=cosine falls",
            "schedule.name=constant",
        ),
    ],
)
def test_what_a_switch_and_a_whole_number_are_is_said_of_the_word_itself(word: str, message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["model=reformer", "data=duplicate", "size=smoke", word])
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_every_switch_takes_the_words_that_omegaconf_reads_and_no_number_else() -> None:
    for word, value in {"true": True, "yes": True, "1": True, "off": False, "0": False, "False": False}.items():
        assert compose(
            ["model=transformer", "size=smoke", "data=duplicate", f"reversible.enabled={word}"]
        ).reversible == (type(Config().reversible)(enabled=value))
    switches = [key for key in known_keys() if (kind := kind_of(Config, key)) and kind.plain is bool]
    assert len(switches) >= 6
    for key in switches:
        with pytest.raises(UserError, match=f"{key}=7 is neither true nor false"):
            compose([f"{key}=7"])


@pytest.mark.parametrize(
    "word", ["training.steps=${seed}", "reversible.enabled=${share_qk}", "optimizer.betas=[0.9,${ema.decay}]"]
)
def test_a_reference_to_another_key_is_left_to_be_resolved(word: str) -> None:
    own = ["model=transformer", "data=duplicate", "size=smoke", "seed=3", "schedule.warmup=0", word]
    assert compose(own).training.steps == (3 if "seed" in word else compose(own[:-1]).training.steps)

"""Hours and what fits go by the device that is named; a plan is JSON and prints all that it counts."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from efftx.bench.stacks import step_of
from efftx.config.compose import compose
from efftx.config.schema import Config
from efftx.data.dataset import find_source
from efftx.errors import UserError
from efftx.machine.devices import threads_of
from efftx.machine.timing import matmul_rate
from efftx.plan import default_device, plan, price
from efftx.plan.flops import training_flops_by_component
from efftx.plan.hardware import DEVICES, cpu, this_cpu
from efftx.plan.table import print_plan

CPU = torch.device("cpu")
devices = importlib.import_module("efftx.plan.hardware")  # `efftx.plan` has a function of that name


KEYS = {"parameters", "parameters_by_component", "flops_per_token", "memory_bytes", "tokens", "hours"}


def _smoke(*overrides: str) -> Config:
    return compose(["data=stdlib", "size=smoke", *overrides])


def test_hours_are_flops_over_the_devices_rate_at_the_stated_utilisation() -> None:
    config = _smoke("model=transformer", "training.accumulation=3")
    planned = plan(config, device="a100", utilisation=0.5)
    assert planned["training_flops"] == planned["tokens"] * planned["training_flops_per_token"]
    assert planned["tokens"] == 6 * 3 * 2 * 64, "steps, micro-batches, rows, tokens of a row"
    assert planned["hours"] == pytest.approx(planned["training_flops"] / (19.5e12 * 0.5) / 3600)
    assert planned["hours"] == planned["hours_by_device"]["a100"]
    assert set(planned) >= KEYS


def test_hashed_attention_reaches_less_of_a_cpus_peak() -> None:
    config = compose(["model=reformer", "data=enwik8", "size=cpu", "lsh.n_hashes=2", "dropout=0"])
    planned, of_heads = plan(config, device="cpu-1-core"), training_flops_by_component(config, 256)
    hashed = planned["training_flops"] * (of_heads["attention_scores"] + of_heads["hashing"])
    hashed /= planned["training_flops_per_token"]
    seconds = (planned["training_flops"] - hashed) / (72.5e9 * 0.77) + hashed / (72.5e9 * 0.3)
    assert planned["hours"] * 3600 == pytest.approx(seconds + planned["draws"] * cpu(1).draw_seconds)
    assert planned["utilisation"] == pytest.approx(planned["training_flops"] / (72.5e9 * seconds))
    assert plan(config, device="cpu-1-core", utilisation=0.5)["utilisation"] == pytest.approx(0.5)
    assert planned["utilisation_by_device"]["a100"] == pytest.approx(DEVICES["a100"].utilisation)


@pytest.mark.parametrize("words", [["attention=[full]"], ["lsh.full_below=4096"]], ids=" ".join)
def test_attention_in_full_reaches_what_all_else_does(words: list[str]) -> None:
    config = compose(["model=reformer", "data=enwik8", "size=cpu", *words])
    assert plan(config, device="cpu-1-core")["utilisation"] == pytest.approx(0.77)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int, torch.dtype]]]:
    """(threads, width, dtype) of every rate that is measured: 3 GFLOP/s a thread."""
    asked: list[tuple[int, int, torch.dtype]] = []

    def matmul_rate(device: torch.device, *, width: int, dtype: torch.dtype) -> float:
        asked.append((torch.get_num_threads(), width, dtype))
        return 3e9 * torch.get_num_threads()

    monkeypatch.setattr(devices, "matmul_rate", matmul_rate)
    this_cpu.cache_clear()
    yield asked
    this_cpu.cache_clear()


def test_the_price_is_at_the_rate_of_this_machine_measured_once(measured: list[tuple[int, int, torch.dtype]]) -> None:
    config, before = _smoke("model=transformer", "device=cpu", "threads=2", "dropout=0"), torch.get_num_threads()
    planned = plan(config)
    assert planned["hours"] == pytest.approx(planned["training_flops"] / (6e9 * cpu(2).utilisation) / 3600)
    assert price(config)["hours"] == planned["hours"] == planned["hours_by_device"]["this-cpu"]
    assert (measured, torch.get_num_threads()) == ([(2, 2048, torch.float32)], before)
    assert "measured here and now, on 2 threads" in planned["device_source"]
    assert plan(config, device="cpu-4-core")["hours"] == pytest.approx(plan(config, device="cpu-2-core")["hours"] / 2)
    assert len(measured) == 1, "a device with a name has its own rate"
    assert plan(replace(config, threads=1))["hours"] == pytest.approx(2 * planned["hours"])


def test_a_rate_is_measured_in_the_dtype_of_the_training(measured: list[tuple[int, int, torch.dtype]]) -> None:
    for dtype in ("float64", "bfloat16"):
        assert plan(_smoke("model=transformer", f"dtype={dtype}", "threads=1"))["device_flops_per_second"] == 3e9
    assert [dtype for _, _, dtype in measured] == [torch.float64, torch.bfloat16]


def test_where_the_machine_is_busy_timing_the_rate_is_that_of_known_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def exclusive(at_most: float) -> Iterator[None]:
        raise UserError("busy", "Another timing runs on this machine.", "")
        yield

    monkeypatch.setattr(devices, "exclusive", exclusive)
    this_cpu.cache_clear()
    planned = plan(_smoke("model=transformer", "threads=3"))
    this_cpu.cache_clear()
    assert planned["hours"] == pytest.approx(plan(_smoke("model=transformer"), device="cpu-3-core")["hours"])
    assert "Another timing runs" in planned["device_source"]


def test_a_measured_rate_is_near_that_of_a_product_and_draws_from_no_generator_in_use() -> None:
    this_cpu.cache_clear()
    state = torch.random.get_rng_state()
    rate = this_cpu(1, "float32").flops_per_second["float32"]
    assert torch.equal(state, torch.random.get_rng_state())
    with threads_of(1):
        assert rate == pytest.approx(matmul_rate(CPU), rel=0.9), "of one order; the machine may be at other work"


def test_numbers_drawn_at_random_take_a_cpu_as_long_with_any_number_of_cores() -> None:
    config = _smoke("model=transformer", "n_layers=1", "dropout=0.1")
    planned = plan(config)
    rows = config.training.batch_size * config.data.length
    embedded_and_read = 2 * config.d_model  # before the first block, and by the head
    assert planned["draws"] == config.training.steps * rows * (2 * config.d_model + config.d_ff + embedded_and_read)
    without = plan(replace(config, dropout=0.0))
    for name in ("cpu-1-core", "cpu-8-core"):
        more = plan(config, device=name)["hours"] - plan(replace(config, dropout=0.0), device=name)["hours"]
        assert more * 3600 == pytest.approx(planned["draws"] * cpu(1).draw_seconds)
    assert without["draws"] == 0
    assert planned["hours_by_device"]["a100"] == without["hours_by_device"]["a100"]


DRAWS_FOR_A_NUMBER = {"bernoulli_": 1, "randn": 1, "randint": 1, "rand": 2}
"""Operators that draw, and what a number of theirs counts: Gumbel noise is two, with the logarithms behind it."""


class _Drawn(TorchDispatchMode):
    """Numbers that are drawn while it is on; a sparse feed-forward layer's coin is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and func._overloadpacket not in CAN_DRAW:
            self.total += DRAWS_FOR_A_NUMBER[func._overloadpacket.__name__] * (out.numel() if out.dim() else 0)
        return out


CAN_DRAW = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
}
"""They could draw for dropout; on a CPU they are called without."""


@pytest.mark.parametrize(
    "words",
    [
        ["model=transformer", "dropout=0.1"],
        ["model=transformer", "dropout=0.1", "reversible.enabled=true"],
        ["model=transformer", "dropout=0.1", "recompute.enabled=true", "chunking.ff=8", "chunking.loss=8"],
        ["model=transformer", "dropout=0.1", "attention_dropout=0.1"],
        ["model=transformer", "attention_dropout=0.1", "share_qk=true"],
        ["model=transformer", "attention_dropout=0.1", "full.query_block=16", "reversible.enabled=true"],
        ["model=transformer", "dropout=0.1", "attention_dropout=0.1", "attention=[local]", "local.chunk_len=16"],
        ["model=transformer", "attention_dropout=0.1", "attention=[strided]", "strided.stride=8"],
        ["model=transformer", "attention_dropout=0.1", "attention=[strided]", "strided.mode=heads", "share_qk=true"],
        ["model=transformer", "attention_dropout=0.1", "attention=[fixed]", "recompute.enabled=true"],
        ["model=reformer", "dropout=0.1", "attention_dropout=0.1"],
        ["model=reformer", "reversible.enabled=false"],
        ["model=reformer", "attention_dropout=0.1", "reversible.enabled=false", "recompute.enabled=true"],
        ["model=reformer", "lsh.hashing=random"],
        ["model=reformer", "lsh.full_below=64", "attention_dropout=0.1"],
        ["model=transformer", "dropout=0.1", "sparse_ff.N=4"],
        ["model=transformer", "dropout=0.1", "sparse_ff.N=4", "reversible.enabled=true"],
        ["model=transformer", "dropout=0.1", "sparse_ff.N=4", "sparse_ff.temperature=0"],
        ["model=sparse_transformer", "dropout=0.1"],
        ["model=scaling", "dropout=0.1", "attention_dropout=0.1", "data.target_length=32"],
        ["model=scaling", "attention_dropout=0.1", "attention=[strided]", "data.target_length=32"],
        ["model=terraformer", "dropout=0.1", "attention_dropout=0.1", "data.target_length=32"],
    ],
    ids=" ".join,
)
def test_the_planned_draws_are_those_of_a_step(words: list[str]) -> None:
    shape = ["n_layers=2", "d_model=32", "d_ff=64", "n_heads=2", "d_head=16", "data.length=64"]
    undropped = [] if "dropout=0.1" in words else ["dropout=0"]
    config = _smoke(*words, *shape, *undropped, "positions.kind=learned", "training.steps=1", "schedule.warmup=0")
    step = step_of(config, CPU, find_source("stdlib").vocab_size(config.data, config.objective))
    with _Drawn() as drawn:
        step()
    assert plan(config, device="cpu-1-core")["draws"] == drawn.total > 0


def test_every_micro_batch_draws_its_own() -> None:
    one, two = (plan(_smoke("model=reformer", "dropout=0.1", f"training.accumulation={n}"))["draws"] for n in (1, 2))
    assert two == 2 * one > 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"device": "a10"}, "a100"),
        ({"device": "cpu-0-core"}, "cpu-2-core"),
        ({"utilisation": 0.0}, ""),
        ({"utilisation": 1.5}, ""),
    ],
)
def test_a_wrong_device_or_utilisation_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        plan(_smoke("model=transformer"), **given)
    assert told in error.value.hint


def test_a_device_without_a_rate_for_the_dtype_is_refused_and_not_listed() -> None:
    config = _smoke("model=transformer", "dtype=bfloat16")
    with pytest.raises(UserError, match="dtype=bfloat16"):
        plan(config, device="v100")
    assert "v100" not in plan(config, device="h100")["hours_by_device"]


@pytest.mark.parametrize("model", ["reformer", "scaling", "terraformer"])
def test_a_plan_is_json_and_prints_every_component_and_device(model: str) -> None:
    planned = plan(_smoke(f"model={model}"), device="v100")
    json.dumps(planned)
    out = io.StringIO()
    print_plan(planned, Console(file=out, width=120))
    for word in (*planned["parameters_by_component"], *planned["hours_by_device"], f"{planned['parameters']:,}"):
        assert word in out.getvalue()


def test_what_fits_goes_by_each_devices_own_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["model=reformer", "data=enwik8", "size=paper", "data.length=65536", "training.batch_size=1"])
    between = (plan(config, device="cpu-2-core")["memory_bytes"]["total"] + 1) / 1e9
    small = {name: replace(DEVICES["h100"], name=name, memory_bytes=between * 1e9) for name in ("h100", "cpu-9-core")}
    monkeypatch.setattr("efftx.plan.DEVICES", small)
    assert plan(config, device="cpu-2-core")["fits"] == {"h100": False, "cpu-9-core": True}


def test_size_gpu_is_priced_on_the_card_that_it_is_meant_for() -> None:
    assert plan(compose(["model=transformer", "data=stdlib", "size=gpu"]))["device"] == "h100"
    planned = plan(compose(["model=transformer", "data=stdlib", "size=cpu", "device=cuda"]))
    assert planned["device"] == "a100"
    assert "none is here" in planned["device_source"] or torch.cuda.is_available()
    at_all = [plan(compose([f"model={model}", "size=gpu", "data=c4"])) for model in ("scaling", "terraformer")]
    assert all(planned["hours"] < 0.25 for planned in at_all), "minutes a training"


def test_a_training_without_steps_takes_no_time() -> None:
    config = _smoke("model=transformer", "training.steps=0", "schedule.name=constant", "schedule.warmup=0")
    planned = plan(config, device="a100")
    assert (planned["hours"], planned["utilisation"]) == (0.0, DEVICES["a100"].utilisation)


def test_a_recomputed_block_draws_its_noise_again_and_a_reversible_one_keeps_its_choice() -> None:
    words = ["model=scaling", "sparse_qkv.S=0", "stack=decoder", "dropout=0", "sparse_ff.N=4"]
    plain = plan(_smoke(*words), device="a100")["draws"]
    assert plain > 0
    assert plan(_smoke(*words, "recompute.enabled=true"), device="a100")["draws"] == 2 * plain
    assert plan(_smoke(*words, "reversible.enabled=true"), device="a100")["draws"] == plain


@pytest.mark.parametrize(
    ("called", "name"), [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-40GB", "a100"), ("NVIDIA GH200 480GB", "a100")]
)
def test_a_gpu_has_the_memory_that_it_says_and_a_name_is_a_whole_word(
    called: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: called)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1, 40 * 10**9))
    found = default_device(_smoke("model=transformer", "device=cuda"))
    assert found.name == name
    assert (found.memory_bytes == 40 * 10**9) == ("GH200" not in called)

"""A plan of several devices is the plan of one of them, with its share of the rows, and its part of what is cut."""

from __future__ import annotations

import json

import pytest

from efftx.cli import main
from efftx.config.compose import compose
from efftx.errors import UserError
from efftx.plan import plan
from efftx.plan.shared import per_device, usable

WORDS = ("model=reformer", "data=enwik8", "size=cpu", "training.batch_size=6", "training.accumulation=2")


def test_one_device_shares_nothing() -> None:
    assert "shared" not in plan(compose(WORDS))


@pytest.mark.parametrize(("devices", "rows", "micro_batches"), [(2, 6, 1), (4, 3, 1), (12, 1, 1), (6, 2, 1)])
def test_replicas_hold_what_one_process_with_their_rows_holds(devices: int, rows: int, micro_batches: int) -> None:
    config = compose(WORDS)
    own = per_device(config, devices)
    assert (own.training.batch_size, own.training.accumulation) == (rows, micro_batches)
    whole, shared = plan(config), plan(config, devices=devices)["shared"]
    alone = plan(compose([*WORDS, f"training.batch_size={rows}", "training.accumulation=1"]))["memory_bytes"]
    assert shared["memory_bytes"]["ddp"]["total"] == alone["total"]
    assert shared["hours_by_device"] == {n: h / devices for n, h in whole["hours_by_device"].items()}
    shards = shared["memory_bytes"]["fsdp"]
    for kind in ("parameters", "gradients", "optimizer_state"):
        assert shards[kind] == -(-alone[kind] // devices)
    assert shards["activations"] == alone["activations"]
    assert shards["gathered"] < 4 * alone["parameters"]


def test_what_is_gathered_is_two_blocks_and_what_is_outside_with_their_gradients() -> None:
    config = compose(["model=transformer", "data=duplicate", "size=smoke", "n_layers=9"])
    found = plan(config, devices=2)
    parts = found["parameters_by_component"]
    outside = parts["embedding"] + parts["positions"] + parts["head"] + 2 * config.d_model  # and the last norm
    block = (found["parameters"] - outside) / 9
    expected = 4 * 2 * (outside + 2 * block)
    assert found["shared"]["memory_bytes"]["fsdp"]["gathered"] == pytest.approx(expected, rel=0.01)


def test_devices_without_a_row_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert usable(compose(WORDS), 64) == 12
    assert usable(compose(WORDS), 5) == 4
    assert usable(compose(WORDS), 1) == 1
    assert main(["plan", *WORDS, "devices=64"]) == 0
    assert "12 of 64 devices: a step has no rows for more; 1 x 1 rows a step on each" in capsys.readouterr().out
    assert main(["plan", *WORDS, "devices=64", "--json"]) == 0
    shared = json.loads(capsys.readouterr().out)["shared"]
    assert (shared["devices"], shared["devices_asked"]) == (12, 64)


@pytest.mark.parametrize("word", ["devices=0", "devices=-2", "devices=many", "devices=", "devices=1.5"])
def test_a_number_of_devices_that_is_none_is_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *WORDS, word]) == 2
    assert "devices=" in capsys.readouterr().err


def test_devices_are_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *WORDS, "devices=2", "devices=4"]) == 2
    assert "'devices' is given twice" in capsys.readouterr().err


def test_rows_that_cannot_be_dealt_out_are_refused_by_what_trains() -> None:
    with pytest.raises(UserError, match="5 processes cannot share 2 micro-batches of 6 rows evenly"):
        per_device(compose(WORDS), 5)


def test_what_is_offloaded_takes_none_of_a_gpus_memory() -> None:
    words = ["model=transformer", "data=stdlib", "size=smoke", "distributed.strategy=fsdp"]
    there, here = (
        plan(compose([*words, *more]), device="v100", devices=2) for more in ([], ["distributed.offload=true"])
    )
    memory = here["memory_bytes"]
    kinds = ("activations", "replay_state", "gathered")
    assert memory["total"] == sum(memory[kind] for kind in kinds) < there["memory_bytes"]["total"]
    assert memory["parameters"] == there["memory_bytes"]["parameters"], "of the host"
    shards = here["shared"]["memory_bytes"]["fsdp"]
    assert set(shards) == {*kinds, "total"}
    assert shards["gathered"] == there["shared"]["memory_bytes"]["fsdp"]["gathered"] == memory["gathered"]
    on_cpu = plan(compose([*words, "distributed.offload=true"]), device="cpu-1-core")["memory_bytes"]
    assert on_cpu["total"] > on_cpu["parameters"]


def test_a_model_that_is_larger_than_a_device_fits_in_no_shards_of_it() -> None:
    """It is built whole, and then cut: 64 shards of 20 billion parameters are small, and 80 GB do not fit into 16."""
    words = ["model=transformer", "data=stdlib", "size=smoke", "d_model=8192", "n_heads=64", "d_ff=32768"]
    words += ["n_layers=24", "training.batch_size=64", "distributed.strategy=fsdp", "positions.kind=learned"]
    shared = plan(compose(words), device="v100", devices=64)["shared"]
    assert shared["memory_bytes"]["fsdp"]["total"] < 16e9
    assert not shared["fits"]["fsdp"]["v100"]
    assert shared["fits"]["fsdp"]["h200"]
    offloaded = plan(compose([*words, "distributed.offload=true"]), device="v100", devices=64)["shared"]
    assert offloaded["fits"]["fsdp"]["v100"] == (offloaded["memory_bytes"]["fsdp"]["total"] <= 16e9)


def test_what_fits_is_asked_of_a_device_s_own_kind_whichever_is_planned_for() -> None:
    """A CPU stores the scores that dropout is drawn on, and a GPU does not."""
    words = ["model=transformer", "size=paper", "attention_dropout=0.1", "data.length=16384", "positions.kind=learned"]
    for_cpu, for_gpu = (plan(compose(words), device=device, devices=8) for device in ("cpu-2-core", "h100"))
    assert for_cpu["shared"]["fits"] == for_gpu["shared"]["fits"]
    assert for_cpu["shared"]["memory_bytes"] != for_gpu["shared"]["memory_bytes"]
    for fits in for_cpu["shared"]["fits"].values():
        assert all(fits[device] for device, alone in for_cpu["fits"].items() if alone)


def test_a_preset_that_is_no_size_is_planned_at_the_paper_s(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = []
    for words in ([], ["size=paper"], ["size=smoke"]):
        named = ["model=sparse_transformer", "preset=sparse_transformer/enwik8_95m", *words]
        assert main(["plan", *named, "--on", "a100", "--json"]) == 0
        tokens.append(json.loads(capsys.readouterr().out)["tokens"])
    assert tokens[0] == tokens[1] > tokens[2]

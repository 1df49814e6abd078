"""What a plan says is what the built model has, computes and holds."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from efftx.bench.stacks import peak_of_step
from efftx.config import Config, compose
from efftx.data import dataset as data_sets
from efftx.errors import UserError
from efftx.models.build import build_model
from efftx.plan import plan, price, print_plan
from efftx.plan.attention import AttentionShape
from efftx.plan.flops import flops_by_component, training_flops_by_component
from efftx.plan.memory import activation_bytes, optimizer_bytes, replay_bytes
from efftx.training.optimizers import make_optimizer

CPU = torch.device("cpu")
FLOP_TOLERANCE = {"transformer": 1e-9, "reformer": 0.01}
"""The same products; hash attention also computes one window of chunks between two sequences that share a run."""
MEMORY_TOLERANCE = 0.2
"""The estimate leaves out statistics of norms, integers and other things small beside activations."""
KEYS = {"parameters", "parameters_by_component", "flops_per_token", "memory_bytes", "tokens", "hours"}


class _CountedFlops(TorchDispatchMode):
    """The FLOPs that PyTorch's own formulas give for every operator that runs, in custom functions too."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        formula = flop_registry.get(torch.ops.aten.baddbmm if packet is torch.ops.aten.baddbmm_ else packet)
        if formula is not None:
            given = {k: v for k, v in (kwargs or {}).items() if k != "out"}
            self.total += formula(*args, **given, out_val=out)
        return out


def _smoke(*overrides: str) -> Config:
    return compose(["data=stdlib", "size=smoke", *overrides])


def _tokens(config: Config, vocab_size: int = 256) -> Tensor:
    return torch.randint(vocab_size, (config.training.batch_size, config.data.length))


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=transformer", "full.query_block=16"],
        ["model=transformer", "full.query_block=24", "share_qk=true", "attention_bias=true"],
        ["model=transformer", "full.query_block=16", "reversible.enabled=true"],
        ["model=transformer", "full.query_block=16", "chunking.ff=16", "chunking.loss=16"],
        ["model=transformer", "full.query_block=16", "reversible.enabled=true", "chunking.ff=16", "chunking.loss=16"],
        ["model=reformer", "reversible.enabled=false", "chunking.ff=0", "chunking.loss=0"],
        ["model=reformer", "lsh.n_hashes=3", "lsh.n_buckets=[4,4]"],
        ["model=reformer", "lsh.n_hashes=1", "data.length=60"],
    ],
    ids=" ".join,
)
def test_the_planned_flops_are_those_that_pytorch_counts_while_the_model_runs(overrides: list[str]) -> None:
    config = _smoke(*overrides)
    model, tokens_BL = build_model(config, 256, CPU), _tokens(config)
    with torch.no_grad(), _CountedFlops() as forward:
        model.token_losses(tokens_BL)
    with _CountedFlops() as training:
        model.token_losses(tokens_BL)[0].mean().backward()

    planned = sum(flops_by_component(config, 256).values()) * tokens_BL.numel()
    planned_training = sum(training_flops_by_component(config, 256).values()) * tokens_BL.numel()

    assert planned == pytest.approx(forward.total, rel=FLOP_TOLERANCE[config.model])
    assert planned_training == pytest.approx(training.total, rel=FLOP_TOLERANCE[config.model])


def test_scores_are_counted_as_they_are_computed() -> None:
    def shape(kind: str, **given: Any) -> AttentionShape:
        return AttentionShape(kind, length=128, d_model=64, n_heads=4, d_head=16, **given)

    assert shape("full").keys == 64.5
    assert shape("full", query_block=128).keys == 128
    assert shape("full", query_block=32).keys == (32 + 64 + 96 + 128) / 4
    assert shape("full", query_block=96).keys == (96 * 96 + 32 * 128) / 128
    assert shape("local", chunk_len=16).keys == 32
    assert shape("lsh", chunk_len=16, n_hashes=4).keys == 4 * 32
    assert shape("lsh", chunk_len=128, n_hashes=1).keys == 128
    assert AttentionShape("local", length=100, d_model=64, n_heads=4, d_head=16, chunk_len=64).keys == 128 * 1.28


def test_components_add_up_to_the_parameters_of_the_model() -> None:
    for overrides in (["model=reformer"], ["model=transformer", "tie_embeddings=true"]):
        config = _smoke(*overrides)
        planned = plan(config)
        model = build_model(config, 256, CPU)
        assert planned["parameters"] == sum(p.numel() for p in model.parameters())
        assert planned["parameters"] == sum(planned["parameters_by_component"].values())


def test_the_papers_size_has_the_parameters_of_its_shapes_and_opens_nothing(
    monkeypatch: pytest.MonkeyPatch, roots: Any
) -> None:
    def refuse(config: Any) -> None:
        raise AssertionError("a plan opened the data")

    monkeypatch.setattr(data_sets, "open_dataset", refuse)

    planned = plan(compose(["model=reformer", "data=enwik8", "size=paper"]), device="v100")

    d, f, width, vocab = 1024, 4096, 8 * 64, 256
    assert planned["parameters_by_component"] == {
        "embedding": vocab * d,
        "positions": 128 * 256 + 512 * 768,
        "attention": 3 * 3 * d * width,
        "feedforward": 3 * (2 * d * f + f + d),
        "norms": 3 * 2 * 2 * d + 2 * 2 * d,
        "head": 2 * d * vocab + vocab,
    }
    assert planned["tokens"] == 60_000 * 8 * 65_536
    memory = planned["memory_bytes"]
    assert memory["activations"] == memory["activations_with_reversible"] < memory["activations_without_reversible"]
    assert memory["replay_state"] > 3 * 8 * 8 * 2 * 65_536 * 8
    assert list(roots.iterdir()) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=transformer"],
        ["model=transformer", "n_layers=5", "dropout=0"],
        ["model=transformer", "share_qk=true", "activation=gelu"],
        ["model=transformer", "full.query_block=64"],
        ["model=transformer", "attention=[local,full]", "local.chunk_len=16", "d_ff=64"],
        ["model=transformer", "reversible.enabled=true"],
        ["model=transformer", "reversible.enabled=true", "reversible.merge=mean", "chunking.ff=32", "chunking.loss=32"],
        ["model=transformer", "chunking.ff=32", "chunking.loss=32", "dropout=0"],
        ["model=reformer", "n_layers=3", "chunking.ff=32"],
        ["model=reformer", "reversible.enabled=false", "lsh.n_hashes=4"],
        ["model=reformer", "attention=[local,lsh]", "lsh.n_hashes=1", "local.chunk_len=32"],
    ],
    ids=" ".join,
)
def test_planned_activations_are_near_the_measured_peak_of_live_bytes(overrides: list[str]) -> None:
    config = _smoke(
        "data.length=256",
        "d_model=64",
        "d_ff=256",
        "n_heads=2",
        "d_head=32",
        "positions.axial_shape=[16,16]",
        "positions.axial_dims=[16,48]",
        *overrides,
    )

    peak, replay = peak_of_step(config, CPU)

    assert activation_bytes(config, 256) == pytest.approx(peak, rel=MEMORY_TOLERANCE)
    assert replay_bytes(config) == replay


@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor"])
def test_the_planned_optimiser_state_is_what_the_optimiser_holds_after_a_step(name: str) -> None:
    config = _smoke("model=transformer", f"optimizer.name={name}", *_own_keys(name))
    model = build_model(config, 256, CPU)
    optimizer = make_optimizer(config.optimizer, model.named_parameters())
    model.token_losses(_tokens(config))[0].mean().backward()
    optimizer.step()

    held = sum(
        t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)
    )

    assert optimizer_bytes(name, model.parameters()) == held


def _own_keys(name: str) -> list[str]:
    return (
        []
        if name == "adam"
        else ["optimizer.weight_decay=0.01"]
        + (["optimizer.betas=[0.9,0.98]", "optimizer.eps=1e-9"] if name == "adamw" else [])
    )


@pytest.mark.parametrize("name", ["duplicate", "stdlib"])
def test_a_source_knows_its_vocabulary_without_being_opened(name: str) -> None:
    config = compose([f"data={name}", "model=transformer", "size=smoke"]).data
    assert data_sets.find_source(name).vocab_size(config) == data_sets.open_dataset(config).vocab_size


def test_hours_are_flops_over_the_devices_rate_at_the_stated_utilisation() -> None:
    config = _smoke("model=transformer")
    planned = plan(config, device="a100", utilisation=0.5)
    assert planned["training_flops"] == planned["tokens"] * planned["training_flops_per_token"]
    assert planned["tokens"] == 6 * 2 * 64
    assert planned["hours"] == pytest.approx(planned["training_flops"] / (19.5e12 * 0.5) / 3600)
    assert planned["hours"] == planned["hours_by_device"]["a100"]
    assert set(planned) >= KEYS


def test_the_price_is_that_of_the_device_that_the_config_asks_for() -> None:
    config = _smoke("model=transformer", "device=cpu", "threads=4")
    assert price(config)["device"] == "cpu-4-core"
    assert price(config)["hours"] == plan(config, device="cpu-4-core")["hours"]
    assert price(config)["hours"] == pytest.approx(plan(config, device="cpu-2-core")["hours"] / 2)


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


def test_a_plan_is_json_and_prints_every_component_and_device() -> None:
    planned = plan(_smoke("model=reformer"), device="v100")
    json.dumps(planned)
    out = io.StringIO()
    print_plan(planned, Console(file=out, width=120))
    for word in (*planned["parameters_by_component"], *planned["hours_by_device"], f"{planned['parameters']:,}"):
        assert word in out.getvalue()

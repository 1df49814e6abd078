"""On a GPU every family gives what it gives on the CPU, decodes as it reads, and trains; skipped where there is none.

In float64, so that a difference is a mistake and not a rounding; hash attention draws its rotations on the device, so
that its op is compared with the same buckets instead of whole models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from efftx.cli import main
from efftx.config.compose import compose
from efftx.decoding.session import CachedSession, PreparedModel
from efftx.layers.patterns import ByHead, KeySet, Softmax
from efftx.models.build import build_model
from efftx.ops.fixed import FixedUnion, OwnBlock, Summaries
from efftx.ops.flex import is_for
from efftx.ops.lsh import lsh_attention
from efftx.ops.strided import Column, StridedUnion, Window
from tests.tolerances import REBUILT_GRADIENT, ROUNDING, TF32, assert_close, values_and_gradients

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*non-deterministic algorithm"),
]

VOCABULARY = 31
COMMON = ("size=smoke", "data=stdlib", "data.length=64", "dropout=0")
DECODERS = {
    "transformer": ("model=transformer",),
    "local": ("model=transformer", "attention=[local]", "local.chunk_len=16", "share_qk=true"),
    "local window": ("model=transformer", "attention=[local]", "local.window=16"),
    "strided": ("model=transformer", "attention=[strided]", "share_qk=true"),
    "strided, merged": ("model=transformer", "attention=[strided]", "strided.mode=merged"),
    "fixed": ("model=transformer", "attention=[fixed]"),
    "fixed by head": ("model=transformer", "attention=[fixed]", "fixed.mode=heads", "fixed.c=1"),
    "Sparse Transformer": ("model=sparse_transformer", "d_qk=8", "init.zero_logits=false"),
    "reversible": ("model=reformer", "attention=[full]"),
    "sparse": ("model=scaling", "stack=decoder", "objective=lm"),
    "sparse loss and SRU": ("model=scaling", "stack=decoder", "objective=lm", "sparse_loss.S=4", "sru.n_layers=1"),
}
PAIRS = {
    "cross-attention": ("model=scaling", "sparse_ff.N=0", "sparse_qkv.S=0", "positions.max_len=64"),
    "sparse": ("model=scaling", "positions.max_len=64"),
    "Terraformer": ("model=terraformer", "attention=[full]", "positions.max_len=64"),
}
INPUTS = torch.tensor([[4, 9, 2, 7, 7, 1], [3, 8, 2, 0, 0, 0]])


def _models(overrides: Sequence[str]) -> tuple[Any, Any]:
    """The same weights on the CPU and on the GPU, in evaluation mode."""
    config = compose([*COMMON, *overrides])
    own = build_model(config, VOCABULARY, torch.device("cpu"), torch.float64).eval()
    there = build_model(config, VOCABULARY, torch.device("cuda"), torch.float64).eval()
    there.load_state_dict(own.state_dict())
    return own, there


def _tokens() -> Tensor:
    return torch.randint(1, VOCABULARY, (2, 32), generator=torch.Generator().manual_seed(1))


def _losses_and_gradients(model: Any, *given: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    nll, _ = model(*given, losses=True)
    nll.sum().backward()
    return nll.detach().cpu(), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [*DECODERS, *PAIRS])
def test_losses_and_gradients_are_those_of_the_cpu(name: str) -> None:
    own, there = _models(DECODERS.get(name) or PAIRS[name])
    given = (_tokens(),) if name in DECODERS else (_tokens(), INPUTS)
    expected, gradients = _losses_and_gradients(own, *given)
    found, found_gradients = _losses_and_gradients(there, *(t.cuda() for t in given))
    assert_close(found, expected, ROUNDING)
    assert list(gradients) == list(found_gradients)
    # Some are zero but for rounding (a key's bias moves all scores alike): all are measured by the largest.
    expected, found = (torch.cat([g.flatten() for g in of.values()]) for of in (gradients, found_gradients))
    assert_close(found, expected, REBUILT_GRADIENT)


@pytest.mark.parametrize("name", [*DECODERS, *PAIRS])
def test_step_by_step_is_the_full_pass(name: str) -> None:
    _, there = _models(DECODERS.get(name) or PAIRS[name])
    tokens = _tokens()
    inputs = () if name in DECODERS else (INPUTS.cuda(),)
    with torch.no_grad():
        full = there(torch.nn.functional.pad(tokens, (0, 1)).cuda(), *inputs)
    session = CachedSession(PreparedModel(there), 40, 2, *inputs)
    logits = session.start([row[:5].tolist() for row in tokens])
    for i in range(5, 20):
        assert_close(logits, full[:, i], ROUNDING, f"token {i}")
        logits = session.step(tokens[:, i].cuda())


@pytest.mark.usefixtures("one_rotation")
@pytest.mark.parametrize("n_hashes", [1, 4])
def test_hash_attention_decodes_step_by_step_what_one_chunk_reads(n_hashes: int) -> None:
    hashing = ("attention=[lsh]", "lsh.n_buckets=[4]", "lsh.chunk_len=64", f"lsh.n_hashes={n_hashes}")
    _, there = _models(("model=reformer", *hashing))
    tokens = _tokens()
    torch.manual_seed(2)  # both draw one rotation a layer
    with torch.no_grad():
        full = there(torch.nn.functional.pad(tokens, (0, 1)).cuda())
    torch.manual_seed(2)
    session = CachedSession(PreparedModel(there), 40, 2)
    logits = session.start([row[:5].tolist() for row in tokens])
    for i in range(5, 20):
        assert_close(logits, full[:, i], ROUNDING, f"token {i}")
        logits = session.step(tokens[:, i].cuda())


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("length", [128, 300])
@pytest.mark.parametrize("name", ["window", "strided", "strided by head", "fixed", "fixed by head"])
def test_flex_attention_gives_the_cpus_values_and_gradients(name: str, length: int, exclude_self: bool) -> None:
    """In float32, which the compiled kernel takes; float64 runs by plain products."""
    sets: dict[str, list[KeySet]] = {
        "window": [Window(32)],
        "strided": [StridedUnion(32)],
        "strided by head": [Window(32), Column(32)],
        "fixed": [FixedUnion(32, 24, 8)],
        "fixed by head": [OwnBlock(32), Summaries(32, 28, 4)],
    }
    pattern = ByHead(sets[name])
    how = Softmax(0.2, exclude_self=exclude_self)
    generator = torch.Generator().manual_seed(2)
    leaves = [torch.randn(2, 4, length, 64, generator=generator) for _ in range(3)]
    expected = values_and_gradients(lambda q, k, v: pattern.attend(q, k, v, how), *(t.double() for t in leaves))
    assert is_for(leaves[0].cuda())
    out = pattern.attend(*(own := [t.cuda().requires_grad_() for t in leaves]), how)
    cotangent = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    found = [out.detach(), *torch.autograd.grad(out, own, cotangent.float().cuda())]
    for got, wanted in zip(found, expected, strict=True):
        assert_close(got.cpu().double(), wanted, TF32)


@pytest.mark.parametrize("later", [False, True])
def test_hash_attention_of_the_same_buckets_is_that_of_the_cpu(later: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    q, v = (torch.randn(2, 3, 96, 16, dtype=torch.float64, generator=generator) for _ in range(2))
    buckets = torch.randint(0, 8, (2, 3, 4, 96), generator=generator)

    def attend(q: Tensor, v: Tensor) -> Tensor:
        return lsh_attention(
            q,
            v,
            buckets.to(q.device),
            n_buckets_total=8,
            chunk_len=16,
            attend_across_buckets=later,
            allow_duplicates=later,
        )

    expected = values_and_gradients(attend, q, v)
    out = attend(*(own := [t.cuda().requires_grad_() for t in (q, v)]))
    cotangent = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(7))
    found = [out.detach(), *torch.autograd.grad(out, own, cotangent.cuda())]
    for got, wanted in zip(found, expected, strict=True):
        assert_close(got.cpu(), wanted, ROUNDING)


@pytest.mark.parametrize("model", ["reformer", "transformer", "sparse_transformer", "scaling", "terraformer"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_family_trains(model: str, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"model={model}", "size=smoke", "data=stdlib", "device=cuda", f"dtype={dtype}"]
    assert main(["train", *words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["metrics"]["loss"] > 0


def test_parameters_in_the_hosts_memory_give_the_same_losses_in_less_of_the_gpus(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shape = ["model=reformer", "data=stdlib", "size=smoke", "n_layers=8", "d_ff=4096", "device=cuda", "threads=1"]
    losses, peaks = [], []
    for i, words in enumerate(([], ["distributed.strategy=fsdp", "distributed.offload=true"])):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        assert main(["train", *shape, *words, f"run_dir=offload{i}", "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["metrics"]["loss"])
        peaks.append(torch.cuda.max_memory_allocated())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert peaks[1] < 0.6 * peaks[0]


def test_a_run_is_the_same_bits_again(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for place in ("a", "b"):
        assert main(["train", "model=reformer", "size=smoke", "data=stdlib", f"run_dir={place}", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["weights_sha256"])
    assert found[0] == found[1]

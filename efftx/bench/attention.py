"""`efftx bench attention`: one whole attention layer, projections included, against its bound and against peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from efftx.bench.memory_tracker import MemoryTracker
from efftx.bench.peers import PEERS, PeerShape, make_peer
from efftx.config.values import COUNT, RANGES, Range
from efftx.core.memory import total_memory
from efftx.errors import UserError, nearest
from efftx.layers.attention import SoftmaxAttention
from efftx.layers.attention_settings import FixedConfig, FullConfig, LSHConfig
from efftx.layers.cost import Rows
from efftx.layers.initialize import materialize, on_meta
from efftx.layers.lsh import LSHAttention
from efftx.layers.patterns import ByHead, Full, KeySet, Pattern
from efftx.layers.projections import DenseQKV
from efftx.machine.devices import resolve_device
from efftx.machine.timing import exclusive, interleaved, machine, matmul_call, read_bandwidth
from efftx.ops.fixed import FixedUnion
from efftx.ops.strided import Column, StridedUnion, Window
from efftx.options import LENGTH, REPEATS, SEED, Options, truth, whole

FORWARD, BOTH = "forward", "forward+backward"
ROUNDS = (1, 2, 4, 8)
LENGTHS = (1024, 4096, 16384)
QUERY_BLOCK = 256
D_MODEL, N_HEADS, D_HEAD, CHUNK_LEN = 256, 4, 64, 64
SETS = ("window", "column", "strided", "fixed")
KINDS = ("full", "memory_efficient", "sdpa", "lsh", *SETS)
"""full: the whole score matrix at once; memory_efficient: by query block (Reformer's baseline); sdpa: PyTorch's fused
kernel; lsh; window and column, the factors of strided attention, and strided and fixed with both in one head."""
SPARSE = {"sparse-dense": "sdpa", **{f"sparse-{kind}": kind for kind in SETS}}
"""The Sparse Transformer's layer on text: 8 heads of 64, stride 128, c 32, queries and keys of their own. The others
are Reformer's, which shares them."""


@dataclass(frozen=True)
class Case:
    """One layer to be measured. `later` is LSH without bucket mask and without correction of duplicates.

    `stride` 0 is near the square root of the length, `c` 0 a quarter of the stride.
    """

    kind: str
    length: int
    batch: int = 1
    d_model: int = D_MODEL
    n_heads: int = N_HEADS
    d_head: int = D_HEAD
    query_block: int = QUERY_BLOCK
    chunk_len: int = CHUNK_LEN
    n_hashes: int = 0
    later: bool = False
    peer: str | None = None
    share_qk: bool = True
    stride: int = 128
    c: int = 32

    def pattern(self) -> Pattern:
        """What a query sees, of softmax attention."""
        node = FixedConfig(self.stride, self.c)
        stride, c = node.stride_of(self.length), node.c_of(self.length)
        sets: dict[str, Callable[[], KeySet]] = {
            "window": lambda: Window(stride),
            "column": lambda: Column(stride),
            "strided": lambda: StridedUnion(stride),
            "fixed": lambda: FixedUnion(stride, stride - c, c),
        }
        if self.kind in sets:
            return ByHead([sets[self.kind]()])
        block = {"full": self.length, "memory_efficient": min(self.query_block, self.length)}.get(self.kind, 0)
        return Full(FullConfig(query_block=block))

    def peer_shape(self) -> PeerShape:
        """What a peer is asked for."""
        return PeerShape(self.d_model, self.n_heads, self.d_head, self.chunk_len, self.n_hashes, self.length)

    def make(self, device: torch.device, seed: int) -> nn.Module:
        """The layer with fresh weights."""
        if self.peer is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return make_peer(self.peer, self.peer_shape(), device)
        layer = self.layer_on_meta()
        materialize(layer, device, seed)
        return layer

    def layer_on_meta(self) -> LSHAttention | SoftmaxAttention:
        """The layer on the meta device, whose FLOPs are counted; for a peer, our layer of the same shape."""
        with on_meta():
            projections = DenseQKV(self.d_model, self.n_heads, self.d_head, share_qk=self.share_qk, bias=False)
            if self.kind != "lsh":
                return SoftmaxAttention(self.pattern(), projections, d_head=self.d_head, attention_dropout=0.0)
            config = LSHConfig(
                n_hashes=self.n_hashes,
                chunk_len=self.chunk_len,
                attend_across_buckets=self.later,
                allow_duplicates=self.later,
            )
            return LSHAttention(config, projections, attention_dropout=0.0)


def case_names() -> list[str]:
    """Every name that `names=` takes, in the order of the rows."""
    lsh = [f"lsh-{n}{form}" for n in ROUNDS for form in ("", "-later")]
    return ["full", "full-block", "full-sdpa", *lsh, *SPARSE, *(f"{peer}-lsh-{n}" for peer in PEERS for n in ROUNDS)]


def case_of(name: str, length: int) -> Case:
    """The case that `names=` calls `name`."""
    full = {"full": "full", "full-block": "memory_efficient", "full-sdpa": "sdpa"}
    if name in full:
        return Case(full[name], length)
    if name in SPARSE:
        return Case(SPARSE[name], length, d_model=512, n_heads=8, share_qk=False)
    peer, _, rest = name.rpartition("lsh-")
    n_hashes, _, form = rest.partition("-")
    peer = peer.removesuffix("-")
    return Case("lsh", length, n_hashes=int(n_hashes), later=bool(form or peer), peer=peer or None)


def bench_attention(options: Options) -> dict[str, Any]:
    """Rows of time, peak memory and ratios at every length for every name that can be measured.

    Options: lengths, names, repeats, pass (forward, forward+backward), device. Each row has, beside the keys of
    every bench, rounds, form, spread, share_of_dense (scores computed over those of dense causal attention),
    ratio_to_bound, ratio_to_peer (seconds over those of the faster peer at the same rounds and length), ratio_to_dense
    (a sparse pattern's seconds over those of sparse-dense at the same length), like_for_like; of the Sparse
    Transformer's layer also what is no projection: alone_seconds, alone_bound_seconds and alone_times_dense
    (sparse-dense's alone_seconds over them: how many times as fast).
    """
    names = options.names("names", case_names(), [n for n in case_names() if n != "full"])
    lengths = options.numbers("lengths", LENGTHS, LENGTH)
    repeats = options.number("repeats", 5, REPEATS)
    which = options.name("pass", (FORWARD, BOTH), BOTH)
    device = resolve_device(options.device())
    options.refuse_rest()
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for length in lengths:
        cases = {}
        for name in names:
            case = case_of(name, length)
            why = PEERS[case.peer].why_not(case.peer_shape()) if case.peer else None
            if why is None:
                cases[name] = case
            else:
                skipped.append({"name": name, "length": length, "why": why})
        rows += measure(cases, which, repeats=repeats, device=device) if cases else []
    add_ratio_to_peer(rows)
    add_ratio_to_dense(rows)
    versions = {peer.package: peer.version for peer in PEERS.values()}
    return {
        "bench": "attention",
        "rows": rows,
        "skipped": skipped,
        "machine": {
            **machine(device, repeats=repeats),
            "read_bytes_per_second": read_bandwidth(device),
            "peers": versions,
        },
        "layer": {"d_model": D_MODEL, "n_heads": N_HEADS, "d_head": D_HEAD, "chunk_len": CHUNK_LEN, "batch": 1},
    }


def measure(
    cases: Mapping[str, Case], which: str, *, repeats: int, device: torch.device, warm_up: int = 1, seed: int = 0
) -> list[dict[str, Any]]:
    """One row a case: timed in turns with each other and with a matrix product; peak memory apart, untimed.

    A forward pass alone runs in evaluation mode without gradients. The bound is the case's FLOPs over the rate of the
    matrix product, a peer's that of the same attention here.
    """
    for case in cases.values():
        _refuse_too_large(case)
    backward = which == BOTH
    calls: dict[str, Callable[[], object]] = {}
    layers = {name: case.make(device, seed).train(backward) for name, case in cases.items()}
    for name, case in cases.items():
        calls[name] = _pass_of(layers[name], input_of(case, device, seed), backward)
        if name in SPARSE:
            calls[_alone(name)] = heads_pass([layers[name]], case.batch, case.n_heads, case.length, seed, backward)
    product, product_flops = matmul_call(device)
    matmul = "a matrix product"
    with exclusive():
        timed = interleaved({**calls, matmul: product}, repeats=repeats, device=device, warm_up=warm_up)
        # Apart, since counting slows every operator down; under the lock, so as not to disturb another's timing.
        peaks = {name: peak_bytes(layers[name], input_of(case, device, seed), backward) for name, case in cases.items()}
    flops_per_second = product_flops / timed[matmul].seconds
    rows = []
    for name, case in cases.items():
        counted = case.layer_on_meta()
        work = {
            part: case.batch * each.forward * (1 + each.backward * backward)
            for part, each in counted.cost(Rows(case.batch, case.length)).work.items()
        }
        flops = sum(work.values())
        alone = timed.get(_alone(name))
        bound = flops / flops_per_second
        rows.append(
            {
                "name": name,
                "peer": case.peer is not None,
                "rounds": case.n_hashes or None,
                "form": None if case.kind != "lsh" else "later" if case.later else "paper",
                "like_for_like": case.later,
                "length": case.length,
                "batch": case.batch,
                "pass": which,
                "seconds": timed[name].seconds,
                "spread": timed[name].spread,
                "peak_bytes": peaks[name],
                "flops": flops,
                "bound_seconds": bound,
                "ratio_to_bound": timed[name].seconds / bound,
                "matmul_flops_per_second": flops_per_second,
                "share_of_dense": counted.keys(case.length) / ((case.length + 1) / 2),
                "alone_seconds": alone and alone.seconds,
                "alone_bound_seconds": work["attention_scores"] / flops_per_second if alone else None,
                "note": PEERS[case.peer].note if case.peer else "",
            }
        )
    return rows


def input_of(case: Case, device: torch.device, seed: int) -> Tensor:
    """Standard Gaussian rows (batch, length, d_model), the same for every case of a shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(case.batch, case.length, case.d_model, generator=generator).to(device)


def peak_bytes(layer: nn.Module, x_BLD: Tensor, backward: bool) -> int:
    """Peak of live tensor bytes of one pass, without the input, the weights and their gradients."""
    call = _pass_of(layer, x_BLD, backward, keep_gradients=True)
    with MemoryTracker() as live:
        call()
    peak = live.peak_bytes(excluding=[p.grad for p in layer.parameters() if p.grad is not None])
    layer.zero_grad(set_to_none=True)
    return peak


def add_ratio_to_peer(rows: Sequence[dict[str, Any]]) -> None:
    """Writes `ratio_to_peer` into the rows: below 1 is faster; None for full attention and without a measured peer."""
    for row in rows:
        same = ("length", "pass", "rounds")
        peers = [r for r in rows if r["peer"] and row["rounds"] and all(r[key] == row[key] for key in same)]
        fastest = min(peers, key=lambda r: float(r["seconds"]), default=None)
        row["ratio_to_peer"] = None if fastest is None else row["seconds"] / fastest["seconds"]
        row["faster_peer"] = None if fastest is None else fastest["name"]


def add_ratio_to_dense(rows: Sequence[dict[str, Any]]) -> None:
    """Writes `ratio_to_dense` (below 1 is faster) and `alone_times_dense` (above 1 is) into the rows of the Sparse
    Transformer's layer; None for others."""
    for row in rows:
        dense = [
            r for r in rows if r["name"] == "sparse-dense" and (r["length"], r["pass"]) == (row["length"], row["pass"])
        ]
        beside = dense[0] if dense and row["name"] in SPARSE else None
        row["ratio_to_dense"] = row["seconds"] / beside["seconds"] if beside else None
        row["alone_times_dense"] = beside["alone_seconds"] / row["alone_seconds"] if beside else None


DEFAULTS: Mapping[str, Any] = {
    **{each.name: each.default for each in fields(Case) if each.default is not MISSING},
    "n_hashes": LSHConfig().n_hashes,
}
"""Of the parameters of `attention_time`, those of LSH among them."""
_HOW: dict[str, tuple[int, Range]] = {"repeats": (3, REPEATS), "warm_up": (1, Range(0, 10**6)), "seed": (0, SEED)}
_NUMBERS: dict[str, Range] = {
    "length": LENGTH,
    "batch": RANGES["training.batch_size"],
    **{key: RANGES[key] for key in ("d_model", "n_heads", "d_head")},
    "query_block": LENGTH,
    **{key: RANGES[f"lsh.{key}"] for key in ("chunk_len", "n_hashes")},
    **dict.fromkeys(("stride", "c"), COUNT),
}
_TRUTHS = ("later", "share_qk")


def attention_time(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`{"seconds", "spread", "peak_bytes", "bound_seconds", ...}` of one layer, for experiments.

    Keys: attention (one of `KINDS`), length; and batch, d_model, n_heads, d_head, query_block, chunk_len, n_hashes
    (default, of lsh: a configuration's), later, share_qk, stride, c, pass, repeats, warm_up, seed, device where they
    differ from the defaults. UserError for a key that is missing or unknown, and for a value that cannot be.
    """
    remaining = dict(parameters)
    for key in ("attention", "length"):
        if key not in remaining:
            raise UserError("bad_value", f"A timing of attention needs '{key}'.", f"Give {key} among its parameters.")
    kind = str(remaining.pop("attention"))
    if kind not in KINDS:
        raise UserError("bad_value", f"attention={kind} is not known here.", nearest(kind, KINDS))
    which = str(remaining.pop("pass", FORWARD))
    if which not in (FORWARD, BOTH):
        raise UserError("bad_value", f"pass={which} is not known.", nearest(which, (FORWARD, BOTH)))
    device = resolve_device(str(remaining.pop("device", "auto")))
    how = {key: whole(key, str(remaining.pop(key, default)), allowed) for key, (default, allowed) in _HOW.items()}
    known = {*_NUMBERS, *_TRUTHS}
    unknown = sorted(remaining.keys() - known)
    if unknown:
        raise UserError("unknown_key", f"A timing of attention has no '{unknown[0]}'.", nearest(unknown[0], known))
    if kind == "lsh":
        remaining = {"n_hashes": DEFAULTS["n_hashes"], **remaining}
    values: dict[str, Any] = {
        k: whole(k, str(remaining[k]), allowed) for k, allowed in _NUMBERS.items() if k in remaining
    }
    values |= {key: truth(key, str(remaining[key]).lower()) for key in _TRUTHS if key in remaining}
    case = Case(kind, **values)
    _refuse_what_cannot_be(case)
    (row,) = measure({kind: case}, which, device=device, **how)
    return {**row, "threads": torch.get_num_threads()}


def _refuse_what_cannot_be(case: Case) -> None:
    """Values that do not go together."""
    if case.kind == "lsh" and not case.share_qk:
        raise UserError("bad_value", "share_qk=false: attention=lsh hashes queries and keys that are shared.")
    node = FixedConfig(case.stride, case.c)
    stride, c = node.stride_of(case.length), node.c_of(case.length)
    if case.kind == "fixed" and c > stride:
        raise UserError(
            "bad_value", f"c={c} positions do not fit into a block of stride={stride}.", "Take a smaller c."
        )


def _pass_of(layer: nn.Module, x_BLD: Tensor, backward: bool, *, keep_gradients: bool = False) -> Callable[[], object]:
    if not backward:

        def forward() -> None:
            with torch.no_grad():
                layer(x_BLD)

        return forward
    x = x_BLD.clone().requires_grad_()

    def forward_and_backward() -> None:
        layer(x).sum().backward()
        x.grad = None
        if not keep_gradients:
            layer.zero_grad(set_to_none=True)

    return forward_and_backward


def heads_pass(
    layers: Sequence[Any], batch: int, n_heads: int, length: int, seed: int, backward: bool
) -> Callable[[], object]:
    """Attention of `layers` (`SoftmaxAttention`) to random heads, one after the other: scores and values alone."""
    device = next(layers[0].parameters()).device
    generator = torch.Generator().manual_seed(seed)
    shape = (4, batch, n_heads, length, layers[0].d_head)
    q, k, v, grad = torch.randn(shape, generator=generator).to(device).unbind()
    for x in (q, k, v):
        x.requires_grad_(backward)

    def passes() -> None:
        for layer in layers:
            out = layer.attend(q, k, v, None)
            if backward:
                torch.autograd.grad(out, (q, k, v), grad)

    return passes


def _alone(name: str) -> str:
    return f"{name}, heads alone"


def _refuse_too_large(case: Case) -> None:
    """A whole score matrix, about three of which live at a time, must fit in the machine's memory."""
    if case.kind != "full":
        return
    needed = 3 * 4 * case.batch * case.n_heads * case.length**2
    memory = total_memory()
    if memory is not None and needed > memory / 2:
        raise UserError(
            "too_large",
            f"Full attention with all scores at length {case.length} takes about {needed / 1e9:.0f} GB.",
            "Leave it out, or take full-block or full-sdpa.",
        )

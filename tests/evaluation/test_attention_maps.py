"""Scores of attention maps, on matrices made by hand and against attention itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from efftx.evaluation.attention_maps import attention_weights, map_scores, seen_from, uniform_weights
from efftx.layers.attention import SoftmaxAttention
from efftx.layers.attention_settings import FixedConfig, FullConfig, LocalConfig, StridedConfig
from efftx.layers.patterns import make_pattern
from efftx.layers.projections import DenseQKV

SIDE = 6
LENGTH = 3 * SIDE * SIDE


def looks_at(pixel: dict[tuple[int, int], tuple[int, int]]) -> Tensor:
    """A head whose queries of a pixel look at the first colour of another, or at place 0 where `pixel` has none."""
    weights_LL = torch.zeros(LENGTH, LENGTH)
    for token in range(LENGTH):
        row, column = token // 3 // SIDE, token // 3 % SIDE
        at = pixel.get((row, column))
        weights_LL[token, 0 if at is None else 1 + 3 * (at[0] * SIDE + at[1])] = 1
    return weights_LL[None, None]


ALL = [(row, column) for row in range(SIDE) for column in range(SIDE)]


@pytest.mark.parametrize(
    ("step", "kind"),
    [((0, 1), "local"), ((2, 2), "local"), ((1, -2), "local"), ((0, 3), "row"), ((3, 0), "column"), ((3, 1), "other")],
)
def test_a_head_that_looks_in_one_direction_has_that_score_alone(step: tuple[int, int], kind: str) -> None:
    down, across = step
    targets = {
        (row, column): (row - down, column - across)
        for row, column in ALL
        if row >= down and 0 <= column - across < SIDE
    }
    scores = map_scores(looks_at(targets))
    for name in ("local", "row", "column"):
        assert scores[name].tolist() == [100.0 if name == kind else 0.0]


def test_shares_are_of_what_falls_on_pixels() -> None:
    near = {(row, column): (row, column - 1) for row, column in ALL if column}
    far = {(row, column): (row - 4, column) for row, column in ALL if row >= 4}
    both = (looks_at(near) + 3 * looks_at(far)) / 4
    scores = map_scores(both)
    n_near, n_far = len(near) * 3 * 1.0, len(far) * 3 * 3.0
    assert scores["local"].item() == pytest.approx(100 * n_near / (n_near + n_far))
    assert scores["column"].item() == pytest.approx(100 * n_far / (n_near + n_far))
    assert scores["row"].item() == 0.0


def test_uniform_attention_has_the_shares_of_its_pixels_counted_one_by_one() -> None:
    counts = {"local": 0.0, "row": 0.0, "column": 0.0}
    total = 0.0
    for query in range(1, LENGTH):
        for token in range(query):
            weight = 1 / (query + 1)
            (r, c), (s, d) = (((t // 3) // SIDE, (t // 3) % SIDE) for t in (query, token))
            total += weight
            if abs(r - s) <= 2 and abs(c - d) <= 2:
                counts["local"] += weight
            elif r == s:
                counts["row"] += weight
            elif c == d:
                counts["column"] += weight
    scores = map_scores(uniform_weights(LENGTH))
    for name, count in counts.items():
        assert scores[name].item() == pytest.approx(100 * count / total, rel=1e-6)
    assert scores["keys"].item() == pytest.approx(100.0, rel=1e-6)


def test_heads_are_scored_apart_and_pictures_together() -> None:
    row = looks_at({(r, c): (r, c - 3) for r, c in ALL if c >= 3})
    column = looks_at({(r, c): (r - 3, c) for r, c in ALL if r >= 3})
    scores = map_scores(torch.cat([torch.cat([row, column], 1), torch.cat([row, row], 1)]))
    assert scores["row"].tolist() == [100.0, 50.0]
    assert scores["column"].tolist() == [0.0, 50.0]


def test_one_key_of_many_is_the_least_that_counts() -> None:
    scores = map_scores(looks_at({}))
    assert scores["keys"].item() == pytest.approx(100 * sum(1 / n for n in range(1, LENGTH + 1)) / LENGTH)


def test_a_row_that_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="no square picture"):
        map_scores(uniform_weights(50))


PATTERNS = {
    "full": FullConfig(),
    "local": LocalConfig(chunk_len=3),
    "local window": LocalConfig(window=4),
    "strided": StridedConfig(stride=4, mode="merged"),
    "strided column": StridedConfig(stride=4, mode="second"),
    "strided by head": StridedConfig(stride=4, mode="heads"),
    "fixed": FixedConfig(stride=4, c=1),
    "fixed summaries": FixedConfig(stride=4, c=1, mode="second"),
    "fixed sub-blocks": FixedConfig(stride=4, c=1, sub_blocks=2),
}


@pytest.mark.parametrize("share_qk", [False, True])
@pytest.mark.parametrize("name", PATTERNS)
def test_weights_times_values_are_what_the_layer_gives(name: str, share_qk: bool) -> None:
    torch.manual_seed(0)
    projections = DenseQKV(16, 2, 8, share_qk=share_qk, bias=True)
    projections.reset_parameters()
    pattern = make_pattern(name.split()[0], PATTERNS[name], 12)
    layer = SoftmaxAttention(pattern, projections, d_head=8, attention_dropout=0.0).double().eval()
    x_BLD = torch.randn(2, 12, 16, dtype=torch.float64)
    with torch.no_grad():
        weights = attention_weights(layer, x_BLD)
        mixed = projections.output(weights @ projections(x_BLD)[2])
        assert torch.allclose(mixed, layer(x_BLD))
    assert torch.allclose(weights.sum(-1), torch.ones(2, 2, 12, dtype=torch.float64))
    assert not weights.triu(1).any()


def test_the_pixels_that_a_place_sees_are_those_of_the_tokens_read() -> None:
    weights = uniform_weights(LENGTH)
    place = 3 * (2 * SIDE + 1)  # predicts the red of row 2, column 1
    seen = seen_from(weights, place)[0]
    assert seen.flatten()[: place // 3].tolist() == pytest.approx([3 / (place + 1)] * (place // 3))
    assert not seen.flatten()[place // 3 :].any()
    assert math.isclose(seen.sum().item(), place / (place + 1), rel_tol=1e-6)

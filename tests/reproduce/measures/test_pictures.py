"""What is measured of models of pictures and sounds, on models at smoke size and on rows made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efftx.data.sound import mu_law
from efftx.reproduce.measures.pictures import attention_maps
from efftx.reproduce.measures.samples import FRAME, drawn_samples, spectra
from efftx.study.experiments import load_experiments

EXPERIMENTS = load_experiments()


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Figure 1's parameters at size smoke, in folders of its own."""
    monkeypatch.setenv("EFFTX_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EFFTX_DATA", str(tmp_path / "data"))
    return {**EXPERIMENTS["sparse/figure1"].parameters["smoke"], "columns": {"": {}}}


def test_pictures_are_drawn_completed_and_real(given: dict[str, Any]) -> None:
    found = {share: drawn_samples(given, 0, "row", {"of": "pictures", "given": share}) for share in (0, 0.5, 1)}
    rows = {share: np.array(one["series"]["rows"]).reshape(2, 4, 4, 3) for share, one in found.items()}
    assert np.array_equal(rows[0.5][:, :2], rows[1][:, :2]), "the upper halves are given"
    assert not np.array_equal(rows[0.5][:, 2:], rows[1][:, 2:])
    assert not np.array_equal(rows[0][:, :2], rows[1][:, :2])
    # After three steps a model is all but uniform: eight bits a byte.
    assert all(one["metrics"][""]["bits"] == pytest.approx(8.0, abs=0.05) for one in found.values())
    above = np.abs(np.diff(rows[1], axis=1)).mean()
    assert found[1]["metrics"][""]["neighbours"] == pytest.approx(above)
    below = np.abs(np.diff(rows[0.5], axis=1))[:, 1:].mean()
    assert found[0.5]["metrics"][""]["neighbours"] == pytest.approx(below), "the first drawn row against the given one"
    again = drawn_samples(given, 0, "row", {"of": "pictures", "given": 0.5})
    assert again == found[0.5]


def test_of_sounds_the_spectrum_is_kept(given: dict[str, Any]) -> None:
    series = drawn_samples(given, 0, "row", {"of": "sounds", "given": 1})["series"]
    assert series["shape"] == [2.0, 64.0]
    assert len(series["rows"]) == 2 * 2 * 64


def test_a_tone_stands_in_its_own_band() -> None:
    n = FRAME
    tone = np.sin(2 * np.pi * 16 * np.arange(2 * n) / n)  # 16 periods a frame
    level_NTF = spectra(np.stack([mu_law(0.5 * tone), mu_law(0 * tone)]))
    assert level_NTF.shape == (2, 2, n // 2)
    assert level_NTF[0].argmax(-1).tolist() == [15, 15]
    assert level_NTF[0].max() == 20.0
    assert not level_NTF[1].any()


def test_maps_of_a_layer_at_smoke_and_of_attention_to_all_alike(given: dict[str, Any]) -> None:
    smoke = {**EXPERIMENTS["sparse/figure2"].parameters["smoke"], "columns": {"": {}}}
    flat = attention_maps(smoke, 0, "row", {"uniform": True})
    found = attention_maps(smoke, 0, "row", {"layer": 1})
    assert flat["metrics"][""]["keys"] == pytest.approx(100.0)
    for name, value in flat["metrics"][""].items():
        assert found["metrics"][""][name] == pytest.approx(value, abs=2.0), f"{name}: all but untrained"
    assert found["metrics"][""]["bits_per_dim"] == pytest.approx(8.0, abs=1.0)
    assert "bits_per_dim" not in flat["metrics"][""], "no model attends so"
    assert len(found["series"]["map"]) == 2 * 4 * 4
    assert found["series"]["query"] == [2.0, 2.0]
    assert flat["series"] == {}

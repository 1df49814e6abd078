"""What a trained model of pictures or sounds draws.

Shape suffixes: N rows, L tokens of a row, T frames, F frequencies.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from efftx.data.sound import mu_law_inverse
from efftx.decoding.generate import Draw, generate
from efftx.machine.devices import seed_step
from efftx.reproduce.measures.measure import Measure, Parameters
from efftx.reproduce.measures.trained import configured, replayed_losses, trained_model
from efftx.sampling.sample import make_session

FRAME = 128
"""Codes of a frame of a spectrum."""


def drawn_samples(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> dict[str, Any]:
    """What a trained model draws at temperature 1, or how it completes the first part of test rows (figures 1 and 5).

    `parameters`: n rows, and overrides under the names `pictures` and `sounds`; `row_parameters`: of, the one or the
    other, and given, the share of a test row that is given: 0 draws all of it, 1 takes the test row itself. Metrics,
    the same under every column: `bits`, the model's bits for each byte that is not given (of test rows: of all), and
    `neighbours`, the mean distance of each such byte from the same colour of the pixel above, or in a sound from the
    code before. Series: `rows`, the bytes of pictures or the `spectra` of sounds, and the `shape` of one: height, width
    and colours, or frames and frequencies.
    """
    config, n = configured(parameters[row_parameters["of"]], seed), int(parameters["n"])
    model, dataset, _ = trained_model(config)
    test_NL = dataset.batch("test", 0, 0, n).tokens_BL
    length = test_NL.shape[1]
    n_given = round(float(row_parameters["given"]) * length)
    if n_given == length:
        with torch.no_grad():
            nats_NL, _ = model(test_NL, losses=True)
        rows_NL, bits, first = test_NL.numpy(), float(nats_NL.double().mean()) / math.log(2), 0
    else:
        seed_step(seed, 0)
        session = make_session(model, length, n)
        prompts = test_NL[:, :n_given].tolist()
        with torch.no_grad():
            drawn = generate(session, prompts, Draw(torch.Generator().manual_seed(seed)), length - n_given)
        rows_NL = np.array([[*start, *one.tokens] for start, one in zip(prompts, drawn, strict=True)])
        bits = -sum(one.log_probability for one in drawn) / (n * (length - n_given)) / math.log(2)
        first = n_given
    picture_shape: tuple[int, ...] | None = getattr(dataset, "picture_shape", None)
    before = 1 if picture_shape is None else math.prod(picture_shape[1:])
    start = max(first, before)
    apart = np.abs(rows_NL[:, start:].astype(np.int64) - rows_NL[:, start - before : length - before])
    metrics = {"bits": bits, "neighbours": float(apart.mean())}
    shown = spectra(rows_NL) if picture_shape is None else rows_NL.reshape(n, *picture_shape)
    series = {
        "rows": [float(value) for value in shown.flatten()],
        "n": [float(n)],
        "given": [float(n_given)],
        "shape": [float(part) for part in shown.shape[1:]],
    }
    return {"metrics": dict.fromkeys(parameters["columns"], metrics), "series": series}


def first_losses_of_samples(parameters: Parameters, seed: int, row: str, row_parameters: Parameters) -> list[float]:
    """What a replay of `drawn_samples` compares: the losses of the first three steps of the training."""
    return replayed_losses(configured(parameters[row_parameters["of"]], seed))


def spectra(codes_NL: np.ndarray) -> np.ndarray:
    """The spectrum of mu-law codes in time, (N, T, F): frames of `FRAME` codes, windowed, decibels above the floor.

    In steps of 3 dB from 0, which is 60 dB or more below the loudest of all.
    """
    wave_NTf = mu_law_inverse(codes_NL)[:, : codes_NL.shape[1] // FRAME * FRAME].reshape(len(codes_NL), -1, FRAME)
    power_NTF = np.abs(np.fft.rfft(wave_NTf * np.hanning(FRAME))[..., 1:]) ** 2
    decibels_NTF = 10 * np.log10(np.maximum(power_NTF / max(float(power_NTF.max()), 1e-30), 1e-6))
    return np.floor((decibels_NTF + 60) / 3)


MEASURES = {
    "drawn_samples": Measure(drawn_samples, first_losses_of_samples),
}

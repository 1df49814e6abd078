"""From nats and hits to the papers' units; one function each."""

from __future__ import annotations

import math
from collections.abc import Mapping

NAMES = {
    "bits_per_dim": "bits/dim",
    "log_perplexity": "log-perplexity",
    "sequence_accuracy": "whole sequences",
    "unit_agreement": "agreement",
    "oracle_agreement": "agreement with the oracle",
    "flops_per_token": "FLOPs a token",
}
"""What a metric is called where people read it; of any other its own name, with spaces."""

_UNITS = {
    "log_perplexity": "nats/token",
    "loss": "nats/token",
    **dict.fromkeys(
        ("accuracy", "sequence_accuracy", "unit_agreement", "oracle_agreement", "dead_units", "controller_share"), "%"
    ),
}


def heading(metric: str, unit: str | None = None) -> str:
    """A metric's name and its unit (None: the one it has here), as an axis or a column is labelled: `accuracy (%)`."""
    if metric == "bits_per_dim" and unit:
        return unit  # bits/byte, which says both
    name = NAMES.get(metric, metric.replace("_", " "))
    unit = _UNITS.get(metric, "") if unit is None else unit
    return f"{name} ({unit})" if unit and unit not in (metric, name) else name


def shown(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics in the paper's unit: the loss in nats is left out where another unit says the same."""
    return {name: value for name, value in metrics.items() if name != "loss" or len(metrics) == 1}


def bits_per_dim(nats: float) -> float:
    """Cross entropy in bits a dimension (a byte of text, a channel of a pixel) from nats: nats / ln 2."""
    return nats / math.log(2.0)


def accuracy(hits: float, total: float) -> float:
    """The share of right predictions in per cent."""
    return 100.0 * hits / total


def in_unit(nats: float, unit: str) -> dict[str, float]:
    """The loss under the paper's name for it, by the data set's unit (`bits/dim` or `nats/token`)."""
    match unit:
        case "bits/dim":
            return {"bits_per_dim": bits_per_dim(nats)}
        case "nats/token":
            return {"log_perplexity": nats}  # positive, lower is better (the third paper's figures)
    raise ValueError(f"No unit is called '{unit}'.")

"""How weights may be rounded for decoding: named here, where nothing imports torch."""

from __future__ import annotations

from typing import Literal, get_args

Quantization = Literal["int8", "int4"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

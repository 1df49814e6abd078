"""Quantised rows for other processors than this one: what is compiled and run here gives what plain sums give."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from efftx.native.library import SOURCE

COMPILER = shutil.which("g++") or shutil.which("c++")
NEEDS = {
    "": "",
    "-mavx": "avx",
    "-mavx2 -mfma": "avx2",
    "-mavx2 -mfma -mavx512f": "avx512f",
    "-mavx2 -mfma -mavx512f -mavx512bw": "avx512bw",
    "-mavx2 -mfma -mavx512f -mavx512bw -mavx512vnni": "avx512_vnni",
}
"""Flags, and what /proc/cpuinfo calls the newest of the instructions that they allow."""
PROGRAM = """
#include "int4.h"
#include <cstdio>
#include <vector>

int main() {
    for (int64_t n : {1, 63, 64, 65, 128, 200, 300, 1024}) {
        std::vector<float> x(n), room(in_units(n)), y(n, 1.0f), w(n);
        std::vector<uint8_t> row(int4_bytes(n) + 64);
        uint32_t state = 1;
        auto next = [&]() { return (state = state * 1664525u + 1013904223u) >> 16; };
        for (auto &v : x) v = (int)(next() % 2001) - 1000.0f;
        for (int64_t i = 0; i < in_units(n) / 2; i++) row[i] = next();
        for (int64_t g = 0; g < in_units(n) / GROUP; g++) {
            uint16_t scale = 0x3f80 + g % 3; // 1 and a little more
            memcpy(&row[in_units(n) / 2 + 2 * g], &scale, 2);
        }
        int64_t blocks = RoundedBy<GROUP>::blocks_of(n);
        std::vector<float> rounded(blocks * BLOCK);
        RoundedBy<GROUP> x16(x.data(), n, rounded.data()), several[] = {x16, x16, x16, x16};
        std::vector<Widened> wide(blocks);
        vec sums[4][WIDENED_ROWS] = {};
        for (int64_t b = 0; b < blocks; b++) {
            for (int j = 0; j < WIDENED_ROWS; j++)
                widen(row.data(), n, b * (BLOCK / UNIT), wide[b].q[j], wide[b].scale[j]);
            tile_dots<4>(several, b, wide[b], sums);
        }
        double exact = 0, size = 1;
        for (int64_t i = 0; i < n; i++) {
            uint8_t both = row[i / UNIT * GROUP + i % GROUP];
            int q = (i % UNIT < GROUP ? both & 15 : both >> 4) - 8;
            double weight = q * (double)scale_of(row.data(), n, i / GROUP);
            const Widened &of = wide[i / BLOCK];
            w[i] = of.q[WIDENED_ROWS - 1][i % BLOCK] * of.scale[WIDENED_ROWS - 1][i % BLOCK / GROUP];
            if (std::fabs(w[i] - weight) > 1e-6) return printf("widen %ld: %g, not %g", (long)i, w[i], weight), 1;
            exact += weight * x[i], size += std::fabs(weight) * 1000;
        }
        Inputs4 inputs(x.data(), n, room.data());
        double found = dot(inputs, row.data(), n, row.data());
        if (std::fabs(found - exact) > 2e-5 * size) return printf("dot of %ld: %g, not %g", (long)n, found, exact), 1;
        for (int b = 0; b < 4; b++)
            for (int j = 0; j < WIDENED_ROWS; j++)
                if (std::fabs(sum_of(sums[b][j]) - exact) > 2e-5 * size)
                    return printf("tile of %ld: %g, not %g", (long)n, sum_of(sums[b][j]), exact), 1;
        const uint8_t *rows[] = {row.data()};
        float half = 0.5f;
        add_rows4<1>(y.data(), rows, &half, n, rows);
        for (int64_t i = 0; i < n; i++)
            if (std::fabs(y[i] - 1 - 0.5 * w[i]) > 1e-5) return printf("sum %ld", (long)i), 1;
    }
}
"""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("flags", NEEDS)
def test_int4_rows_with_the_instructions_of(flags: str, tmp_path: Path) -> None:
    info = Path("/proc/cpuinfo")
    has = info.read_text().split() if info.exists() else []
    if NEEDS[flags] and NEEDS[flags] not in has:
        pytest.skip(f"this processor has no {NEEDS[flags]}")
    (tmp_path / "main.cpp").write_text(PROGRAM)
    command = [str(COMPILER), "-std=c++17", "-O2", *flags.split(), f"-I{SOURCE.parent}", "main.cpp", "-o", "main"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert made.returncode == 0, made.stderr
    ran = subprocess.run([str(tmp_path / "main")], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stdout or f"it ended with {ran.returncode}"

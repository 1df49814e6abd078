"""What the tests of `efftx bench decode` share."""

from __future__ import annotations

D, N_BLOCKS, VOCABULARY, FLOAT = 128, 6, 32_000, 4
KEYS = {"name", "peer", "length", "pass", "seconds", "peak_bytes", "bound_seconds"} | {
    *("version", "note", "batch", "width", "protocol", "spread", "p50", "p99", "uneven", "tokens", "block_seconds"),
    *("weights", "bytes", "ratio_to_bound", "bandwidth", "share_of_read", "share_of_matvec", "overhead_share"),
    *("components", "n_blocks", "quantization", "distinct_blocks", "distinct_row_sets", "ratio_to_first"),
    *("block_ratio_to_first", "tokens_per_second", "first_token_seconds", "repeats", "stolen_share"),
}

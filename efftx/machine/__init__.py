"""The machine that computes: devices, precision, determinism, timing."""

"""Kernels in C++ for single tokens, compiled where they run; without a compiler PyTorch's operations stand in."""

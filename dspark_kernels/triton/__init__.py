"""Triton kernels for CUDA devices; `TRITON_INTERPRET=1` runs them on the CPU for tests."""

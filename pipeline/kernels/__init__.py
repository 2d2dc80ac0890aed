"""Fused kernels: the truth in plain torch, C++ for the CPU, Triton for the GPU, and the one place that chooses."""

"""Fused local-attention kernels: C++ for CPUs, Triton for GPUs. Knows nothing of lsa_study."""

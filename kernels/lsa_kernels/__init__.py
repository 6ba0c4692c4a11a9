"""Fused local-attention kernels: C++ for CPUs. Knows nothing of lsa_study."""

from lsa_kernels.build import build_info
from lsa_kernels.neighboring import neighboring_attention, why_not_neighboring

__all__ = ["build_info", "neighboring_attention", "why_not_neighboring"]

"""Fused local-attention kernels: C++ for CPUs, Triton for GPUs. Knows nothing of lsa_study."""

from lsa_kernels.build import build_info, scratch_bytes, window_lanes
from lsa_kernels.filters import apply_filters, why_not_filters
from lsa_kernels.grouped_conv import grouped_conv, why_not_grouped_conv
from lsa_kernels.neighboring import neighboring_attention, why_not_neighboring
from lsa_kernels.operators import Eq4Inputs
from lsa_kernels.pictures import resized_crop, warped, why_not_pictures
from lsa_kernels.strided import apply_strided, why_not_strided
from lsa_kernels.window import why_not_window, window_attention

__all__ = [
    "Eq4Inputs",
    "apply_filters",
    "apply_strided",
    "build_info",
    "grouped_conv",
    "neighboring_attention",
    "resized_crop",
    "scratch_bytes",
    "warped",
    "why_not_filters",
    "why_not_grouped_conv",
    "why_not_neighboring",
    "why_not_pictures",
    "why_not_strided",
    "why_not_window",
    "window_attention",
    "window_lanes",
]

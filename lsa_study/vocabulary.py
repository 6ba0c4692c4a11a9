"""The options of Eq. 4 by name. Nothing here needs torch, so that plans can be checked without."""

from typing import Literal, get_args

Term = Literal["qk", "q_rk", "rq_k", "bias"]
Norm = Literal["identity", "filter_norm", "softmax"]
Application = Literal["window", "neighboring"]
Border = Literal["zero", "mask"]
Implementation = Literal["auto", "reference", "unfold", "sdc", "fused"]

TERMS: tuple[Term, ...] = get_args(Term)

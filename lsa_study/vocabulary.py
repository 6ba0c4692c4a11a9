"""The options of Eq. 4 by name. Nothing here needs torch, so that plans can be checked without."""

from typing import Literal, get_args

Term = Literal["qk", "q_rk", "rq_k", "bias"]
Norm = Literal["identity", "filter_norm", "softmax"]
Application = Literal["window", "neighboring"]
Border = Literal["zero", "mask"]
Implementation = Literal["auto", "reference", "unfold", "sdc", "flex", "fused"]

TERMS: tuple[Term, ...] = get_args(Term)
NORMS: tuple[Norm, ...] = get_args(Norm)
APPLICATIONS: tuple[Application, ...] = get_args(Application)
BORDERS: tuple[Border, ...] = get_args(Border)
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)

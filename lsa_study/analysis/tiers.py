"""What the results of a tier may be taken for, in words."""

from __future__ import annotations

from collections.abc import Mapping

MEANING: Mapping[str, str] = {
    "toy": "Tier toy: a check that the pipeline works, never a reproduction of the article.",
    "proxy": "Tier proxy: small images and a small network, never a reproduction of the article; "
    "it can only show whether the order of the rows reappears.",
    "paper": "Tier paper: the article's data set and protocol.",
}

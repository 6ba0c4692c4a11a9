"""The settings of the optimiser. Nothing here needs torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lsa_study.config.operators import Group


class Optimizer(Group):
    """Which rule moves the weights."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or stochastic gradient descent."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of SGD: the share of the last step that is taken again; AdamW has its own two, 0.9 and 0.999.
    """
    nesterov: bool = False
    """Of SGD: the gradient is taken as if the momentum had moved the weights already."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.kind == "adamw" and (self.momentum is not None or self.nesterov):
            found = "nesterov=True" if self.momentum is None else f"momentum={self.momentum:g}"
            raise ValueError(
                f"{found} changes nothing under adamw, which has momenta of its own; drop it, or "
                "give kind: sgd"
            )
        if self.kind == "sgd" and self.momentum is None:
            raise ValueError("kind='sgd' needs a momentum; give momentum: 0.9, or 0.0 for none")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True needs a momentum above 0; give momentum: 0.9")
        return self


def science_of_optimizer(optimizer: Optimizer) -> dict[str, Any] | None:
    """The optimiser as an identity holds it: nothing for AdamW, which all first results had."""
    return None if optimizer.kind == "adamw" else optimizer.model_dump()

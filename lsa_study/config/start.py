"""Trained weights that a run begins from, of another row or of a file; when it is given up."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lsa_study.config.names import Name
from lsa_study.config.operators import Group


class Start(Group):
    """Trained weights that training begins from, in place of random ones; all else begins anew.

    Of another row of the study (``row``) or of another study (``study``), or of a file (``weights``
    and ``source``). Tables and position maps of another size are interpolated.
    """

    study: Name | None = None
    """Another study, or side study, at the same tier in the same results folder; null: this one.
    Without ``row`` it is the study's row of the same network: backbone, stem and operator."""
    row: str | None = None
    """A variant of that study: the run of the same seed, the weights that it reports."""
    recipe: str | None = None
    """What that row's settings are, its seed aside; filled in when the study is read."""
    weights: str | None = None
    """A file under ``weights/`` in the data sets' folder, such as ``imagenet21k/swin_l.pth``."""
    source: Literal["lsa", "timm", "swin", "elsa", "dwnet", "volo"] | None = None
    """Whose layout the file has: lsa is this project's, the others are releases."""
    head: Literal["kept", "drawn", "mapped"] = "kept"
    """kept: the classifier of the weights goes on; drawn: it is initialised at random, as it has
    to be for other classes; mapped: it takes the rows of the file's that ``map`` names, as Swin's
    code from ImageNet-21K."""
    map: str | None = None
    """A file under ``weights/`` with a line for every class here: its row in the file's classifier.

    Swin's authors release it as ``data/map22kto1k.txt``. It does not follow from WordNet ids: the
    rows are nearly those of the sorted ids of ImageNet-21K, but two ids stand in others' places,
    and teddy bears, which are no class there, take the row of chemises ("teddy")."""

    @model_serializer(mode="wrap")
    def _without_study(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in dump(self).items() if k != "study" or v is not None}

    @property
    def what(self) -> str:
        """What is begun from, for readers: ``row``, ``study/row``, or a file."""
        return self.weights or "/".join(filter(None, (self.study, self.row)))

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.row is None and self.study is None) == (self.weights is None):
            raise ValueError("give either row or weights, or study")
        if (self.weights is None) != (self.source is None):
            raise ValueError("weights and source belong together; give both or neither")
        for name in ("weights", "map"):
            path = getattr(self, name) or ""
            if path.startswith(("/", "~")) or ".." in path.split("/"):
                raise ValueError(
                    f"{name}={path!r} leaves the folder weights/ of the data sets; give a path "
                    "inside it"
                )
        return self

    @model_validator(mode="after")
    def _mapped_by_a_file(self) -> Self:
        if self.head == "mapped" and self.weights is None:
            raise ValueError(
                "head='mapped' with row: rows of a study have the same classes; give head: kept, "
                "or drawn for other classes"
            )
        if self.head == "mapped" and self.map is None:
            raise ValueError(
                "head='mapped' but map is null: nothing says which row of the file's classifier "
                "is which class here; give map: imagenet21k/map22kto1k.txt (data/map22kto1k.txt of "
                "Swin's released code, put under weights/), or head: drawn"
            )
        if self.head != "mapped" and self.map is not None:
            raise ValueError(
                f"map={self.map!r} changes nothing with head={self.head!r}; give head: mapped, or "
                "drop map"
            )
        return self


class Stop(Group):
    """When a run is given up; what stands behind is no result like another, but its own outcome.

    After every epoch, all epochs are judged of which this run and the reference row's run of the
    same seed have a record. Nothing waits for the reference row.
    """

    below: Literal["reference"]
    """What a run is measured by: the row that it is compared with."""
    at: Annotated[float, Field(gt=0, lt=1)]
    """Share of the epochs before which, and after the last of which, nothing is judged."""
    margin: Annotated[float, Field(gt=0, le=100)]
    """So many points of the task's first metric below the other run's at one epoch end it."""

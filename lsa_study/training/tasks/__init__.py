"""What the training loop asks of a task: a network, the loss of a batch, an evaluation."""

from __future__ import annotations

from lsa_study.config.settings import Settings
from lsa_study.training.tasks.classify import Classification
from lsa_study.training.tasks.dense import Detection, Segmentation
from lsa_study.training.tasks.protocol import Task

__all__ = ["Task", "of"]

TASKS: dict[str, type[Task]] = {
    "classify": Classification, "detect": Detection, "segment": Segmentation,
}  # fmt: skip


def of(settings: Settings) -> Task:
    """The task of a run."""
    return TASKS[settings.task.kind](settings)

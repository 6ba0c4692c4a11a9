"""What a site wants of its jobs: partition, account, limits; from ``cluster.yaml`` and flags."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt

from lsa_study.config import shipped, yaml
from lsa_study.config.experiment import Resources
from lsa_study.config.layers import Layers, validate
from lsa_study.config.operators import Group

PEERS_SECONDS = 180
"""How long the other processes of a run may go on after one has ended."""


class Here(Group):
    """What one run is given here in place of what its study asks for; None: as that asks."""

    nodes: PositiveInt | None = None
    gpus: NonNegativeInt | None = None
    """GPUs per node; 0: none, as with ``gpus: none``."""
    cpus: PositiveInt | None = None
    """CPU cores per GPU."""
    memory_gb: PositiveInt | None = None
    hours: PositiveFloat | None = None


class Cluster(BaseModel):
    """How jobs are asked for here. Nothing of it is part of a run's identity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    """Nodes to stay away from, as ``sbatch --exclude`` takes them."""
    nice: NonNegativeInt | None = None
    throttle: PositiveInt | None = None
    """At most so many runs of a tier at once; arrays then follow one another."""
    gpus: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    """How this site counts GPUs. none: a partition without GPUs, one process per node."""
    gpu_type: str | None = None
    resources: Here = Here()
    python: str | None = None
    """The command that starts Python in a job, as the shell takes it, such as
    ``apptainer exec --nv /images/lsa.sif python``; None: the Python that launches."""
    submit_limit: PositiveInt | None = None
    """Most jobs a user may have queued, where the scheduler does not tell."""
    leave_seconds: PositiveInt = 120
    """A run is told to save and leave so long before its time limit."""
    check_data: Literal["here", "job"] = "here"
    """here: look for the data before queueing; job: this machine cannot see the nodes' data."""
    setup: list[str] = []
    """Shell lines that run in the job first, such as ``module load cuda``."""
    sbatch: dict[str, str | int | bool] = {}
    """Further options of ``sbatch``, by their long names."""
    srun: list[str] = []
    """Further arguments of ``srun``."""

    def given(self, asked: Resources) -> Resources:
        """What a run gets that asks for these resources."""
        here = self.resources.model_dump(exclude_none=True)
        if self.without_gpus:
            here["gpus"] = 1  # one process per node
        return asked.model_copy(update=here)

    @property
    def command(self) -> str | None:
        """What starts Python in a job, its wrappers deaf to the signals that are for Python."""
        if self.python is None:
            return None
        # Else the first signal to leave ends them, and SLURM the rest, before anything is saved.
        deaf = f"trap '' USR2 TERM; {self.python} \"$@\""
        return f"sh -c {shlex.quote(deaf)} sh"

    @property
    def without_gpus(self) -> bool:
        """Whether runs get no GPU."""
        return self.gpus == "none" or self.resources.gpus == 0

    def gpus_of(self, resources: Resources) -> int:
        """GPUs that one run holds."""
        return 0 if self.without_gpus else resources.nodes * resources.gpus

    def options(self, resources: Resources) -> dict[str, Any]:
        """What one run asks of the scheduler, in submitit's words for the options of ``sbatch``."""
        minutes = max(1, math.ceil(resources.hours * 60))
        nice = {} if self.nice is None else {"nice": self.nice}
        kind = f"{self.gpu_type}:" if self.gpu_type else ""
        asked = self.model_dump(include={"partition", "account", "qos", "constraint", "exclude"})
        for name, value in asked.items():  # a user's defaults, which then stand in the script
            asked[name] = value or os.environ.get(f"SBATCH_{name.upper()}")
        asked |= {
            "time": minutes,
            "nodes": resources.nodes,
            # One process per GPU.
            "ntasks_per_node": resources.gpus,
            "cpus_per_task": resources.cpus,
            "mem": f"{resources.memory_gb}GB",
            "signal_delay_s": min(self.leave_seconds, minutes * 60 // 4),
            # srun takes --cpus-per-task from nobody else; without it loading gets one core.
            # When one process of a run ends, the others would wait for it until the time limit.
            "srun_args": [
                f"--cpus-per-task={resources.cpus}",
                "--kill-on-bad-exit=1",
                f"--wait={PEERS_SECONDS}",
                "--export=ALL",
                *self.srun,
            ],
            "additional_parameters": {"requeue": True, **nice, **self.sbatch},
        }
        if not self.without_gpus:
            name, prefix = ("gres", "gpu:") if self.gpus == "gres" else ("gpus_per_node", "")
            asked[name] = f"{prefix}{kind}{resources.gpus}"
        return {name: value for name, value in asked.items() if value is not None}


def read_cluster(path: Path | None = None, flags: Mapping[str, Any] | None = None) -> Cluster:
    """Read the site's wishes; what is given as flags wins, None means not given.

    Args:
        path: the file; None: ``experiments/cluster.yaml``, which need not be there.
        flags: fields of ``Cluster``; of ``Here`` as ``resources.nodes``.

    Raises:
        ConfigError: every mistake at once, each with its place.
    """
    layers = Layers()
    place = path or shipped.find("experiments/cluster.yaml")
    if path is not None or place.exists():
        document = yaml.read(place)
        layers.add(document, document.data)
    for name, value in (flags or {}).items():
        if value is not None:
            layers.set(name, value, f"--{name.rpartition('.')[2].removesuffix('_gb')}")
    return validate(Cluster, layers.data, layers.where)

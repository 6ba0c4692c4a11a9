"""Training: one run folder, start to finish, from its configuration alone.

``train`` is all that launchers need. Importing this package does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lsa_study.rundir import RunDir
from lsa_study.training.signals import StopOnSignals

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["StopOnSignals", "train"]


def train(
    run_dir: RunDir,
    *,
    stop: Callable[[], bool] | None = None,
    console: Console | None = None,
) -> str:
    """Train or resume one run; a run that has ended is left as it is.

    Args:
        run_dir: a folder that holds ``config.yaml``.
        stop: asked after every step; once true, the run is saved and left. None: SIGINT, SIGTERM,
            SIGUSR1 and SIGUSR2 ask for it.
        console: where progress is shown; a bar on a terminal, else a line now and then.

    Returns:
        The state the run was left in: done, diverged, oom, stopped or failed. What failed is in
        ``status.json`` (cause, message) and, for bugs, in the attempt's ``log.txt``.

    Raises:
        ConfigError: the folder holds no configuration that can be read.
        Refused: somebody else is writing in the folder.
        KeyboardInterrupt: a second interrupt; the last checkpoint stands.
    """
    # Imported here, not above: launchers and planning must not need torch.
    from lsa_study.training.run import live

    if stop is not None:
        return live(run_dir, stop=stop, console=console)
    with StopOnSignals() as asked:
        return live(run_dir, stop=asked, console=console)

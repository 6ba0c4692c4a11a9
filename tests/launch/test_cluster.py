"""A site's wishes, and the options of sbatch that they become."""

import os
import shlex
import signal
import subprocess
import sys

import pytest

from lsa_study.config.experiment import Resources
from lsa_study.errors import ConfigError
from lsa_study.launch import cluster
from lsa_study.launch.cluster import Cluster


def test_the_sample_asks_for_nothing_special():
    assert cluster.read_cluster() == Cluster()


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("partition: gpu\naccount: lab\nthrottle: 8\n")
    wishes = cluster.read_cluster(path, {"partition": "long", "account": None})
    assert (wishes.partition, wishes.account, wishes.throttle) == ("long", "lab", 8)


def test_mistakes_are_named_with_their_place(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("partitoin: gpu\ngpus: some\n")
    with pytest.raises(ConfigError) as caught:
        cluster.read_cluster(path, {"throttle": 0})
    told = str(caught.value)
    assert f"{path}:1: partitoin is not a setting; did you mean partition?" in told
    assert f"{path}:2: gpus = 'some'" in told
    assert "--throttle: throttle = 0" in told


def test_what_one_run_asks_for():
    asked = Resources(nodes=2, gpus=8, cpus=6, memory_gb=320, hours=36.5)
    options = Cluster(gpu_type="a100", nice=5, srun=["--mpi=none"]).options(asked)
    assert options["time"] == 2190
    assert (options["nodes"], options["ntasks_per_node"], options["cpus_per_task"]) == (2, 8, 6)
    assert options["gpus_per_node"] == "a100:8"
    assert options["mem"] == "320GB"
    assert options["signal_delay_s"] == 120
    assert options["additional_parameters"] == {"requeue": True, "nice": 5}
    assert options["srun_args"][0] == "--cpus-per-task=6"
    assert options["srun_args"][-1] == "--mpi=none"
    assert "partition" not in options


@pytest.mark.parametrize(
    ("way", "tasks", "gpus", "options"),
    [
        ("gres", 4, 4, {"gres": "gpu:4"}),
        ("gpus-per-node", 4, 4, {"gpus_per_node": "4"}),
        ("none", 1, 0, {}),
    ],
)
def test_ways_to_ask_for_gpus(way, tasks, gpus, options):
    cluster = Cluster(gpus=way)
    asked = cluster.options(cluster.given(Resources(gpus=4)))
    assert asked["ntasks_per_node"] == tasks
    assert {key: asked[key] for key in ("gres", "gpus_per_node") if key in asked} == options
    assert Cluster(gpus=way).gpus_of(Resources(gpus=4)) == gpus


def test_a_short_limit_keeps_most_of_its_time():
    """Told 120 s before the end of one minute, a run would leave as soon as it began."""
    options = Cluster().options(Resources(hours=1 / 60))
    assert (options["time"], options["signal_delay_s"]) == (1, 15)


def test_a_wrapper_outlives_the_signals_that_are_for_python(tmp_path):
    """SLURM sends them to all processes of a job's step."""
    wrapper = tmp_path / "a wrapper"
    wrapper.write_text(f'#!/bin/sh\n{sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    code = (
        "import signal, sys\n"
        "took = lambda *_: sys.exit(len(sys.argv[1]))\n"
        "for number in (signal.SIGUSR2, signal.SIGTERM): signal.signal(number, took)\n"
        "print(flush=True); signal.pause()"
    )
    arguments = shlex.join(["-c", code, "seven 7"])
    for number in (signal.SIGUSR2, signal.SIGTERM):
        command = f"exec {Cluster(python=shlex.quote(str(wrapper))).command} {arguments}"
        with subprocess.Popen(
            ["/bin/sh", "-c", command], stdout=subprocess.PIPE, start_new_session=True
        ) as process:
            process.stdout.readline()
            os.killpg(process.pid, number)
            assert process.wait(30) == 7
    assert Cluster().command is None

"""What a process that trains in a test begins with.

Not in conftest.py: a new process imports it by name, and there are several modules of that name.
"""

import os
import sys

import torch


def live(target, environment, arguments):
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(target(*arguments))

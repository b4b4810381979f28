"""A stage of a recipe that Ctrl-C stops: what its processes run."""

import os
import signal
import time

import torch.distributed as dist

from vgt.training import recipes
from vgt.training.captioner_stage import CaptionerStage

_stage = recipes._stage


def stage(part, config, folder, name):
    """The stage. Its second step gives Ctrl-C to the process that started this one, and waits until it is handed on."""
    CaptionerStage.begin_step = _interrupt
    _stage(part, config, folder, name)


def _interrupt(self, step):
    if step == 1 and dist.get_rank() == 0:
        interrupt = signal.getsignal(signal.SIGINT).__self__  # the training loop's
        os.kill(os.getppid(), signal.SIGINT)
        while not interrupt.asked:
            time.sleep(0.01)

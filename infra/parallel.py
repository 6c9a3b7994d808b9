"""More than one process: the questions are shared out, gradients are summed, and the first process alone writes.

    torchrun --nproc-per-node 4 calunc.py --model M --dataset D --out runs/x

Every process has the whole model and reads the same run folder. A result depends on its question alone, and the update
of a step, from the sum of all gradients, is the same everywhere. Without torchrun, there is one process, and each
function here does next to nothing. Left out: spreading a model over several devices.
"""

import contextlib
import datetime
import os
import re
import signal
import sys

import torch
import torch.distributed as dist

from infra.files import first, line, processes, write_whole


def size():
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def joined(device="auto"):
    """Be one of the processes that torchrun started, if it did. Raises ConnectionError when another one is gone."""
    if processes() == 1:
        yield
        return
    signal.signal(signal.SIGTERM, _alone)  # what torchrun sends when one is dead
    backend, local = "gloo", int(os.environ["LOCAL_RANK"])
    if device != "cpu" and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ValueError(f"more processes than the {torch.cuda.device_count()} GPUs of this machine")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"  # all but gradients goes through gloo
    # a process may wait for hours while the first one works; one that is dead is noticed by its closed connection
    dist.init_process_group(backend, timeout=datetime.timedelta(days=7))
    try:
        with contextlib.redirect_stdout(sys.stdout if first() else None):
            yield
    except RuntimeError as error:
        if not re.search("gloo|nccl|connection|broken pipe", str(error), re.IGNORECASE):
            raise
        _alone()
    finally:
        dist.destroy_process_group()


def _alone(*_):
    raise ConnectionError("another process of this run ended; the same command goes on from what is finished")


def share(items):
    """The part of a list that is this process's own: every `size`-th item."""
    return items[dist.get_rank() :: size()] if size() > 1 else items


def wait():
    """Until all are here, and see what the first one has written."""
    if size() > 1:
        dist.barrier()


def missing(files):
    """This process's share of the files that are not there yet."""
    left = [file for file in files if not file.exists()]
    wait()  # all have seen the same before one is written
    return share(left)


def keep(file, value):
    """Write one of them, whole, as JSON."""
    write_whole(file, [line(value)])


def gather(mine):
    """What this process made of its `share` of a list -> what all made, in the order of that list."""
    if size() == 1:
        return mine
    parts = [None] * size()
    dist.all_gather_object(parts, mine)
    return [parts[i % size()][i // size()] for i in range(sum(map(len, parts)))]


def totals(**numbers):
    """The sum of each number over all processes. -> {name: sum}"""
    each = gather([numbers])
    return {name: sum(of[name] for of in each) for name in numbers}


def add_gradients(parameters):
    """Each gradient becomes the sum over all processes."""
    for p in parameters if size() > 1 else ():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        dist.all_reduce(p.grad)

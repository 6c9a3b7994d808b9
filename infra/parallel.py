"""More than one process: the questions are shared out, gradients are summed, and the first process alone writes.

    torchrun --nproc-per-node 4 calunc.py --model M --dataset D --out runs/x

Every process has the whole model and reads the same run folder. A result depends on its question alone, so it is the
same whoever computes it; the update of a step, from the sum of all gradients, is the same everywhere. Started without
torchrun, there is one process, and each function here does next to nothing.

Left out: pipeline and tensor parallelism. For a model that does not fit one device, `shard` spreads its frozen weights
over all of them, and every process computes everything: it saves memory and no time.
"""

import contextlib
import datetime
import os
import re
import signal
import sys

import torch
import torch.distributed as dist
from tqdm import tqdm

from infra.files import append_line, first, line, processes, read_lines, strict, write_whole

replicas = False  # all processes compute the same


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def size():
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def joined(device="auto"):
    """Be one of the processes that torchrun started, if it did. Raises ConnectionError when another one is gone."""
    if processes() == 1:
        yield
        return

    def stop(*_):
        raise ConnectionError("another process of this run ended; the same command goes on from what is finished")

    signal.signal(signal.SIGTERM, stop)  # what torchrun sends when one is dead
    gpu = device != "cpu" and torch.cuda.is_available()
    if gpu:
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise ValueError(f"more processes than the {torch.cuda.device_count()} GPUs of this machine")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # a process may wait for hours while the first one works; one that is dead is noticed by its closed connection.
    # all but gradients goes through gloo, also where there are GPUs
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(days=7))
    try:
        with contextlib.redirect_stdout(sys.stdout if first() else None):
            yield
    except RuntimeError as error:
        if not re.search("gloo|nccl|connection|broken pipe", str(error), re.IGNORECASE):
            raise
        stop()
    finally:
        dist.destroy_process_group()


def share(items):
    """The part of a list that is this process's own: every `size`-th item."""
    return items[rank() :: size()] if not replicas else items


def wait():
    """Until all are here, and see what the first one has written."""
    if size() > 1:
        dist.barrier()


def gather(mine):
    """What this process made of its `share` of a list -> what all made, in the order of that list."""
    if size() == 1 or replicas:
        return mine
    parts = [None] * size()
    dist.all_gather_object(parts, mine)
    return [parts[i % size()][i // size()] for i in range(sum(map(len, parts)))]


def totals(**numbers):
    """The sum of each number over all processes. -> {name: sum}"""
    each = gather([numbers])
    return {name: sum(of[name] for of in each) for name in numbers}


def add_gradients(parameters):
    """Each gradient becomes the sum over all processes; where all compute the same, the first one's."""
    if size() == 1:
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in parameters])
    if replicas:
        dist.broadcast(flat, src=0)  # all stay equal, whatever rounding does
    else:
        dist.all_reduce(flat)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(part.view_as(p))


def shard(model, device):
    """Spread the frozen weights of each transformer block over all processes. The adapter, added later, stays whole.

    Raises ValueError for a model that does not say what its blocks are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    global replicas
    blocks = [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]
    if not blocks:
        raise ValueError(f"--shard on: {type(model).__name__} does not say what its blocks are")
    mesh = init_device_mesh(device.type, (size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    replicas = True


class Journal:
    """The pieces of a stage, shared out among the processes; what an interrupted call has made is kept.

    pieces: of any kind, by their names. Each process writes a file of its own, a line of JSON for each piece.
    """

    def __init__(self, run, stage, config, pieces):
        self.pieces, self.files = pieces, run.unfinished(stage, config, "{}.jsonl")
        self.own = self.files.with_name(self.files.name.format(rank()))
        if self.own.exists():  # without a last line that was cut short
            write_whole(self.own, map(line, read_lines(self.own)))
        self.done = self._read()
        wait()  # all have read the same before anything is added

    def todo(self, **bar):
        """The names of this process's pieces that are left to make. bar: as of tqdm"""
        names = [name for name in self.pieces if name not in self.done]
        with tqdm(total=len(self.pieces), initial=len(self.pieces) - len(names), **bar) as shown:
            for name in share(names):
                yield name
                shown.update(1 if replicas else size())

    def keep(self, name, value):
        append_line(self.own, {"piece": name, "value": strict(value)})

    def all(self):
        """What was made of all pieces, by all processes, as JSON has it. -> {name: value}"""
        wait()
        return self._read()

    def _read(self):
        found = {}
        for file in sorted(self.files.parent.glob(self.files.name.format("*"))):
            for row in read_lines(file):
                if not isinstance(row, dict) or row.keys() != {"piece", "value"}:
                    raise ValueError(f"{file} is damaged: delete it, and its pieces are made again")
                if row["piece"] in self.pieces:
                    found[row["piece"]] = row["value"]
        return found

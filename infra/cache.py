"""KV caches that are forked, and caches with room: a step of sampling then copies one token of each row, not all."""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Layer(DynamicLayer):
    """Keys and values of one layer, (R, heads, C, d). With room for more columns they are written in place, which no
    gradient survives; without, they grow by concatenation."""

    def __init__(self, keys, values, room):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.buffers = keys, values, None
        if room:
            self.buffers = [x.new_empty(*x.shape[:2], x.shape[2] + room, x.shape[3]) for x in (keys, values)]
            self._write(keys, values, keys.shape[2])

    def _write(self, keys, values, end):
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[: len(new), :, end - new.shape[2] : end] = new
        self.keys, self.values = (buffer[: len(keys), :, :end] for buffer in self.buffers)

    def update(self, keys, values, *args, **kwargs):
        if not self.buffers:
            return super().update(keys, values)
        self._write(keys, values, self.get_seq_length() + keys.shape[2])
        return self.keys, self.values


def fork(cache, rows, cut=None, room=0):
    """Some of the rows, any number of times each; what is fed to them leaves `cache` as it is. -> cache

    rows (R,); cut (R,): how many columns to leave off at the end of each row, the rest of it moved to the right.
    """

    def moved(x):  # (Q, heads, C, d) -> (R, heads, C, d)
        if cut is None or not cut.any():
            return x[rows]
        column = (torch.arange(x.shape[2], device=x.device) - cut[:, None]).clamp_min(0)  # (R, C)
        return x[rows[:, None], :, column].transpose(1, 2)

    found = DynamicCache()
    found.layers = [Layer(moved(layer.keys), moved(layer.values), room) for layer in cache.layers]
    return found


def keep(cache, going):
    """Only the rows `going`, in place: the last of them take the places that become free. -> their new order"""
    free, last = sorted(set(range(len(going))) - set(going)), [row for row in going if row >= len(going)]
    order = list(range(len(going)))
    for place, row in zip(free, last, strict=True):
        order[place] = row
    for layer in cache.layers:
        for buffer in layer.buffers:
            buffer[free] = buffer[last]
        columns = layer.get_seq_length()
        layer.keys, layer.values = (buffer[: len(going), :, :columns] for buffer in layer.buffers)
    return order

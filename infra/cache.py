"""Rows of a KV cache copied, and caches with room for more columns: a sampling step then writes one token per row."""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Layer(DynamicLayer):
    """Keys and values of one layer, (R, heads, C, d). With room for more columns they are written in place, which no
    gradient survives; without, they grow by concatenation. shift: see `fork`."""

    def __init__(self, keys, values, room=0, shift=None):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.buffers, self.shift = keys, values, None, shift
        if room:
            self.buffers = [x.new_empty(*x.shape[:2], x.shape[2] + room, x.shape[3]) for x in (keys, values)]
            self._write(keys, values, keys.shape[2])

    def _write(self, keys, values, end):
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[: len(new), :, end - new.shape[2] : end] = new
        self.keys, self.values = (buffer[: len(keys), :, :end] for buffer in self.buffers)

    def update(self, keys, values, *args, **kwargs):
        if not self.buffers:
            columns, shift, self.shift = self.get_seq_length(), self.shift, None
            super().update(keys, values)
            if shift is not None:
                self.keys, self.values = (moved(x, columns, shift[:, None]) for x in (self.keys, self.values))
            return self.keys, self.values
        self._write(keys, values, self.get_seq_length() + keys.shape[2])
        return self.keys, self.values


def fork(cache, rows, shift=None, room=0):
    """Some of the rows, any number of times each; what is fed to them leaves `cache` as it is. -> cache

    rows (R,); shift (R,): how many of the tokens that each row is fed first are padding, in front: the row moves to the
    right, over them, so that there is no padding between its tokens.
    """
    found = DynamicCache()
    found.layers = [Layer(layer.keys[rows], layer.values[rows], room, shift) for layer in cache.layers]
    return found


def moved(x, columns, shift):
    """Shift the first columns of each row right, over the padding that follows. (R, heads, C, d), int, (R, 1) -> x"""
    column = torch.arange(x.shape[2], device=x.device)
    column = torch.where(column < columns + shift, (column - shift).clamp_min(0), column)  # (R, C)
    return x[torch.arange(len(x), device=x.device)[:, None], :, column].transpose(1, 2)


def keep(cache, going):
    """Drop all rows but `going`, in place: the last of them fill the gaps. -> their new order"""
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

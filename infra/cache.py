"""Rows of a KV cache copied, and caches with room for more columns: a sampling step then writes one token per row.

Hybrid models keep recurrent states beside keys and values. These have no columns to shift or mask, so rows with
unequally many new tokens are read apart (`equal_widths`).
"""

import copy
import functools

import torch
import torch.nn.functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionAndFullAttentionLayer, LinearAttentionLayer


class Layer(DynamicLayer):
    """Keys and values of one layer, (R, heads, C, d). With room for more columns they are written in place, which no
    gradient survives; without, they grow by concatenation. shift: see `fork`."""

    buffers = shift = None

    def make(self, room, shift):
        self.buffers, self.shift = None, shift
        if room:
            pair = self.keys, self.values
            self.buffers = [x.new_empty(*x.shape[:2], x.shape[2] + room, x.shape[3]) for x in pair]
            self._write(*pair, self.keys.shape[2])

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


class State(LinearAttentionLayer):
    """Convolution and recurrent states of one layer, (R, ...)."""

    def update_recurrent_state(self, recurrent_states, state_idx=0, **kwargs):
        """Replaced, not written in place: gradients may need the old one."""
        self.recurrent_states[state_idx], self.is_recurrent_states_initialized[state_idx] = recurrent_states, True
        return recurrent_states


class Both(State, Layer, LinearAttentionAndFullAttentionLayer):
    """A layer with attention and recurrence side by side."""


def empty(model):
    """A cache for a model that has read nothing. It keeps whole windows: which part is seen is in the mask."""
    found, layers = DynamicCache(), DynamicCache(config=model.config).layers
    found.layer_class_to_replicate = Layer
    if any(isinstance(layer, LinearAttentionLayer) for layer in layers):
        found.layers = layers
        for i, layer in enumerate(layers):
            if isinstance(layer, LinearAttentionLayer):
                layers[i] = (Both if isinstance(layer, DynamicLayer) else State)(layer.number_of_states)
            elif isinstance(layer, DynamicLayer):
                layers[i] = Layer()
    return found


def fork(cache, rows, shift=None, room=0):
    """Some of the rows, any number of times each; what is fed to them leaves `cache` as it is. -> cache

    rows (R,); shift (R,): how many of the tokens that each row is fed first are padding, in front: the row moves to the
    right, over them, so that there is no padding between its tokens.
    """
    found = copy.copy(cache)
    found.layers = [replaced(layer, lambda x: x[rows], layer) for layer in cache.layers]
    for layer in found.layers:
        if isinstance(layer, Layer):
            layer.make(room, shift)
    return found


def replaced(layer, change, *layers):
    """A copy of a layer in which each tensor of rows is changed, given those of `layers` in its place."""
    found = copy.copy(layer)
    for name in ("keys", "values") if isinstance(layer, Layer) and layer.is_initialized else ():
        setattr(found, name, change(*(getattr(x, name) for x in layers)))
    for name, value in vars(layer).items() if isinstance(layer, State) else ():
        if isinstance(value, dict):  # states, and what is known of each
            every = [[getattr(x, name)[i] for x in layers] for i in value]
            setattr(found, name, {i: change(*x) if torch.is_tensor(x[0]) else x[0] for i, x in enumerate(every)})
    return found


def stateful(cache):
    return any(isinstance(layer, State) for layer in cache.layers)


def equal_widths(read_on):
    """lm.read_on for recurrent states: rows with equally many new tokens at a time, so that there is no padding."""

    @functools.wraps(read_on)
    def reading(lm, before, rows, prompts):
        widths = [len(p) - len(before.prompts[r]) for p, r in zip(prompts, rows, strict=True)]
        if len(set(widths)) == 1 or not stateful(before.cache):
            return read_on(lm, before, rows, prompts)
        groups = [[i for i, w in enumerate(widths) if w == width] for width in sorted(set(widths))]
        parts = [read_on(lm, before, [rows[i] for i in g], [prompts[i] for i in g]) for g in groups]
        order = torch.tensor(sum(groups, []), device=lm.device).argsort()
        columns = max(part.cache.get_seq_length() for part in parts)
        for layer in (layer for part in parts for layer in part.cache.layers if isinstance(layer, Layer)):
            layer.keys, layer.values = (F.pad(x, (0, 0, columns - x.shape[2], 0)) for x in (layer.keys, layer.values))
        cache, layers = copy.copy(parts[0].cache), zip(*(part.cache.layers for part in parts), strict=True)
        cache.layers = [replaced(same[0], lambda *x: torch.cat(x)[order], *same) for same in layers]
        return type(before)(prompts, cache, torch.cat([part.last for part in parts])[order])

    return reading


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
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, State):
            cache.layers[i] = layer = replaced(layer, lambda x: x[order], layer)
        if isinstance(layer, Layer):
            for buffer in layer.buffers:
                buffer[free] = buffer[last]
            columns = layer.get_seq_length()
            layer.keys, layer.values = (buffer[: len(going), :, :columns] for buffer in layer.buffers)
    return order

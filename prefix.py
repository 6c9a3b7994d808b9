"""Each token computed once: prompts that begin alike, and completions that begin alike, share the beginning.

A batch of prompts has a common beginning (the few-shot preamble); its KV cache is computed once and expanded to the
prompts, gradients and all unless they are frozen. Each prompt has many completions; they are written side by side into
the *same* row, as a tree whose branches the attention mask hides from one another:

    common beginning (1, P)  ->  prompts (Q, L)  ->  completions (Q, at most n tokens a step, or all of them at once)

A prompt may be frozen: the base model reads it, without adapter and gradient, and the adapter is on for the completions
alone. Then a step of training costs what the completions cost. ("Activated LoRA", arXiv 2504.12397.)

Nothing here depends on an architecture: a model that takes position ids and a 4-D attention mask will do.
"""

import contextlib
import copy

import torch
from transformers import DynamicCache

from cost import Size
from lora import adapter

LOGITS = 2**25  # computed at once, 128 MiB of them: 680 tokens of a vocabulary of 49,152


def check_context(lm, prompts, more=0):
    """Raises ValueError where a prompt and `more` tokens exceed the model's context."""
    context = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts))
    if context and longest + more > context:
        raise ValueError(f"a prompt of {longest} tokens and {more} new ones exceed the model's context of {context}")


class Read:
    """Q prompts that the model has read: their KV cache, ready for completions.

    frozen: the base model reads them, without adapter and gradient, once for whatever comes after. Else they are read
    for each use, gradients on; what all of them begin with is read once in either case.
    """

    def __init__(self, lm, prompts, frozen=False):
        check_context(lm, prompts)
        self.lm, self.prompts, self.frozen = lm, prompts, frozen
        # each prompt keeps at least one token of its own: its last logits start the completion
        limit = min(map(len, prompts)) - 1
        self.shared = next((i for i in range(limit) if len({p[i] for p in prompts}) > 1), limit)
        with contextlib.ExitStack() as stack:
            if frozen:
                stack.enter_context(torch.no_grad())
                stack.enter_context(adapter(lm, False))
            self.stem = Rows(lm)
            if self.shared:
                self.stem.extend([prompts[0][: self.shared]], [[[0]] * self.shared], [range(self.shared)], keep=1)
            self.whole = self._own(range(len(prompts))) if frozen else None

    def some(self, chosen):
        """-> Read of some of the prompts, which frozen ones need not be read again for."""
        other = copy.copy(self)
        other.prompts = [self.prompts[q] for q in chosen]
        other.whole = self.whole.fork(chosen) if self.frozen else None
        return other

    def then(self, more):
        """-> Read of frozen prompts that go on: each with more tokens, at least one, which the base model reads."""
        other = copy.copy(self)
        other.prompts = [p + list(x) for p, x in zip(self.prompts, more, strict=True)]
        check_context(self.lm, other.prompts)
        position = [range(len(p), len(p) + len(x)) for p, x in zip(self.prompts, more, strict=True)]
        with torch.no_grad(), adapter(self.lm, False):
            other.whole = self.whole.fork(range(len(more)))
            other.whole.last = other.whole.extend(more, [[[0]] * len(x) for x in more], position, keep=1)
        return other

    def _own(self, chosen):
        """Read what is a prompt's own."""
        own, rows = [self.prompts[q][self.shared :] for q in chosen], self.stem.fork([0] * len(chosen))
        position = [range(self.shared, self.shared + len(x)) for x in own]
        rows.last = rows.extend(own, [[[0]] * len(x) for x in own], position, keep=1)
        return rows

    def rows(self, chosen, n):
        """Rows of some of the prompts, for n completions each. -> Rows; `last` has their last logits, (Q, 1, V)"""
        rows = self.whole.fork(chosen) if self.frozen else self._own(chosen)
        rows.n, rows.members = n, rows.members.expand(-1, -1, n)
        return rows


class Rows:
    """The KV cache of some prompts with n completions each. Each column knows its position and whose it is."""

    def __init__(self, lm):
        """One row without any column yet."""
        self.lm, self.n, self.cache, self.last = lm, 1, DynamicCache(), None
        self.position = torch.empty(1, 0, dtype=torch.long, device=lm.device)  # (Q, C)
        self.members = torch.empty(1, 0, 1, dtype=torch.bool, device=lm.device)  # (Q, C, n)

    def fork(self, rows):
        """A copy of some of the rows, to go on from; what goes on leaves these as they are."""
        other = copy.copy(self)
        other.cache = DynamicCache()
        for i, layer in enumerate(self.cache.layers):
            other.cache.update(layer.keys[rows], layer.values[rows], i)
        other.position, other.members = self.position[rows], self.members[rows]
        other.last = self.last if self.last is None else self.last[rows]
        return other

    def select(self, rows):
        rows = torch.tensor(rows, device=self.lm.device)
        self.cache.batch_select_indices(rows)
        self.members, self.position = self.members[rows], self.position[rows]

    def extend(self, ids, members, position, keep=0):
        """Feed new tokens, lists of (at most T) per row, padded on the left; returns logits (Q, keep or T, V).

        members: the completions that each token belongs to. Those that begin alike share the tokens of the beginning.
        """
        width = max(map(len, ids))

        def pad(lists):
            return torch.tensor([[0] * (width - len(x)) + list(x) for x in lists], device=self.lm.device)

        mine = torch.zeros(len(ids), width, self.n, dtype=torch.bool)
        for r, row in enumerate(members):
            for t, completions in enumerate(row, start=width - len(row)):
                mine[r, t, completions] = True
        reader = pad([[group[0] for group in row] for row in members])  # (Q, T), one member speaks for the others
        work = self.lm.work
        cost = dict(
            size=Size.of(self.lm.model), tokens=sum(map(len, ids)), pairs=sum(p + 1 for row in position for p in row),
            logits=sum(min(len(x), keep or len(x)) for x in ids),
        )  # fmt: skip
        ids, position = pad(ids), pad(position)
        self.members = torch.cat([self.members, mine.to(ids.device)], dim=1)  # (Q, C, n)
        self.position = torch.cat([self.position, position], dim=1)  # (Q, C)
        # a token sees the prompt and the earlier tokens of its own completion; padding sees the first token of all
        own = self.members.transpose(1, 2).gather(1, reader[:, :, None].expand(-1, -1, self.members.shape[1]))
        visible = own & (self.position[:, None] <= position[:, :, None])  # (Q, T, C)
        model, config = self.lm.model, self.lm.model.config.get_text_config()

        def mask(visible):
            if model.config._attn_implementation == "eager":  # adds its mask; the others take booleans
                zeros = torch.zeros(visible.shape, device=ids.device, dtype=model.dtype)
                visible = zeros.masked_fill(~visible, torch.finfo(model.dtype).min)
            return visible[:, None]

        masks, window = mask(visible), getattr(config, "sliding_window", None)
        if window:  # some layers, or all of them, see the last tokens alone
            near = mask(visible & (position[:, :, None] - self.position[:, None] < window))
            mixed = getattr(config, "layer_types", None)
            masks = {"full_attention": masks, "sliding_attention": near} if mixed else near
        # an index, because a slice of the hidden states would not be contiguous, which is slow
        kept = torch.arange(width - keep if 0 < keep < width else 0, width, device=ids.device)
        logits = model(
            input_ids=ids, attention_mask=masks, position_ids=position, past_key_values=self.cache,
            use_cache=True, logits_to_keep=kept,
        ).logits  # fmt: skip
        work.forward(**cost)
        keys = self.cache.layers[0].keys
        if keys.requires_grad:
            keys.register_hook(lambda _: work.backward(**cost))
        return logits


def tree_of(completions):
    """Completions of one prompt -> {beginning: the completions that have it}"""
    tree, same = {}, {}
    for c, x in enumerate(completions):
        same.setdefault(tuple(x), []).append(c)
    for x, members in same.items():
        for i in range(1, len(x) + 1):
            tree.setdefault(x[:i], []).extend(members)
    return tree


def feed(rows, prompts, trees, keep=0):
    """Extend each row by the last tokens of the beginnings in its tree, in any order: what a token sees is decided by
    the mask. -> logits (Q, W, V), or of the last `keep` of them, padded in front"""
    return rows.extend(
        [[x[-1] for x in tree] for tree in trees], [list(tree.values()) for tree in trees],
        [[len(p) + len(x) - 1 for x in tree] for p, tree in zip(prompts, trees, strict=True)], keep,
    )  # fmt: skip


def chunks(sizes, limit):
    """Indices of rows of similar size, at most `limit` tokens with the padding or one row; longest first."""
    chunks = []
    for i in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if not chunks or sizes[chunks[-1][0]] * (len(chunks[-1]) + 1) > limit:
            chunks.append([])
        chunks[-1].append(i)
    return chunks

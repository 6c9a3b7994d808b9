"""The second engine: `sample` and `completion_logprobs` of lm.py, computing what completions have in common once.

The completions of a prompt are written side by side into the *same* row, as a tree whose branches the attention mask
hides from one another:

    prompts (Q, C)  ->  completions (Q, at most n tokens a step, or all of them at once)

Ten short answers or sixteen percentages have few different tokens, and each is computed once: several times faster than
a row for each completion. With long thoughts there is little to share, and the mask grows with the square of its row.
The model must take position ids and a 4-D attention mask; `infra.models.check` finds out.
"""

import torch

from infra.cache import fork
from infra.text import ended
from lm import Read, check_context, pick, read, uniform


class Rows:
    """The KV cache of Q prompts with n completions each. Each column knows its position and whose it is."""

    def __init__(self, lm, before, n):
        self.lm, self.n = lm, n
        self.cache = before.cache
        real = before.mask()
        self.position = (real.cumsum(1) - 1).clamp_min(0)  # (Q, C)
        self.members = real.bool()[:, :, None].expand(-1, -1, n)  # (Q, C, n)

    def select(self, rows):
        rows = torch.tensor(rows, device=self.lm.device)
        self.cache = fork(self.cache, rows)
        self.members, self.position = self.members[rows], self.position[rows]

    def feed(self, prompts, trees):
        """Extend each row by the last tokens of the beginnings in its tree, in any order: what a token sees is decided
        by the mask. Rows are padded on the left. -> logits (Q, W, V)"""
        width, device = max(map(len, trees)), self.lm.device

        def padded(lists):
            return torch.tensor([[0] * (width - len(x)) + x for x in lists], device=device)

        ids = padded([[x[-1] for x in tree] for tree in trees])  # (Q, W)
        reader = padded([[group[0] for group in tree.values()] for tree in trees])  # one member speaks for the others
        position = padded([[len(p) + len(x) - 1 for x in tree] for p, tree in zip(prompts, trees, strict=True)])
        mine = torch.zeros(len(trees), width, self.n, dtype=torch.bool)
        for r, tree in enumerate(trees):
            for t, completions in enumerate(tree.values(), start=width - len(tree)):
                mine[r, t, completions] = True
        self.members = torch.cat([self.members, mine.to(device)], dim=1)  # (Q, C, n)
        self.position = torch.cat([self.position, position], dim=1)  # (Q, C)
        # a token sees the prompt and the earlier tokens of its own completion; padding sees the prompt's first token
        own = self.members.transpose(1, 2).gather(1, reader[:, :, None].expand(-1, -1, self.members.shape[1]))
        visible = own & (self.position[:, None] <= position[:, :, None])  # (Q, W, C)
        return self.lm.model(
            input_ids=ids, attention_mask=self._masks(visible, position), position_ids=position,
            past_key_values=self.cache, use_cache=True,
        ).logits  # fmt: skip

    def _masks(self, visible, position):
        """In the model's format; one for each type of layer, if some have a sliding window."""
        model, config = self.lm.model, self.lm.model.config.get_text_config()

        def mask(visible):
            if model.config._attn_implementation == "eager":  # adds its mask; the others take booleans
                zeros = torch.zeros(visible.shape, device=visible.device, dtype=model.dtype)
                visible = zeros.masked_fill(~visible, torch.finfo(model.dtype).min)
            return visible[:, None]

        window = getattr(config, "sliding_window", None)
        if not window:
            return mask(visible)
        near = mask(visible & (position[:, :, None] - self.position[:, None] < window))
        mixed = getattr(config, "layer_types", None)
        return {"full_attention": mask(visible), "sliding_attention": near} if mixed else near


def chunks(sizes, limit):
    """Indices of rows of similar size, at most `limit` tokens with the padding or one row; longest first."""
    found = []
    for i in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if not found or sizes[found[-1][0]] * (len(found[-1]) + 1) > limit:
            found.append([])
        found[-1].append(i)
    return found


@torch.no_grad()
def sample(lm, prompts, temperatures, max_new_tokens, stop, seeds, logprobs=False, blank=frozenset()):
    """As lm.sample, with equal tokens."""
    before, n = prompts if isinstance(prompts, Read) else read(lm, prompts), len(temperatures)
    check_context(lm, before.prompts, max_new_tokens)
    out, logp = [[[] for _ in range(n)] for _ in before.prompts], [[0.0] * n for _ in before.prompts]
    temperature = torch.tensor(temperatures, device=lm.device)
    for left in chunks([n] * len(out), lm.chunk):
        part = before.some(left)
        numbers = uniform([seeds[q] for q in left], n, max_new_tokens, lm.device)  # (R, n, T)
        # each row of the batch is a prompt and its unfinished completions, in groups of those that are equal so far
        rows, groups, logits = Rows(lm, part, n), [[list(range(n))]] * len(left), part.last[:, None]  # (R, W, V)
        for step in range(max_new_tokens):
            number = numbers[:, None, :, step].expand(-1, logits.shape[1], -1)  # (R, W, n)
            drawn, terms = torch.zeros_like(number, dtype=torch.long), torch.zeros_like(number)
            for t in set(temperatures):
                drawn = torch.where(temperature == t, pick(logits, t, number), drawn)
            if logprobs:
                terms = logits.gather(-1, drawn).float() - logits.float().logsumexp(-1, keepdim=True)
            trees = [{} for _ in left]
            for q, tree, row, tokens, nats in zip(left, trees, groups, drawn.tolist(), terms.tolist(), strict=True):
                padding = len(tokens) - len(row)  # in front
                for group, token, nat in zip(row, tokens[padding:], nats[padding:], strict=True):
                    for c in group:
                        out[q][c].append(token[c])
                        logp[q][c] += nat[c]
                        if not ended(out[q][c], stop, blank):
                            tree.setdefault(tuple(out[q][c]), []).append(c)
            going = [r for r, tree in enumerate(trees) if tree]
            if not going or step + 1 == max_new_tokens:
                break
            if len(going) < len(left):
                rows.select(going)
                left, trees, numbers = [left[r] for r in going], [trees[r] for r in going], numbers[going]
            groups = [list(tree.values()) for tree in trees]
            logits = rows.feed([before.prompts[q] for q in left], trees)
    return (out, logp) if logprobs else out


def completion_logprobs(lm, prompts, completions, temperature=1.0):
    """As lm.completion_logprobs, with equal numbers up to rounding."""
    before = prompts if isinstance(prompts, Read) else read(lm, prompts)
    distinct = [list(dict.fromkeys(map(tuple, group))) for group in completions]  # equal ones are scored once
    trees = [{} for _ in distinct]  # {beginning: the completions that have it}, one for each prompt
    for tree, group in zip(trees, distinct, strict=True):
        for c, x in enumerate(group):
            for i in range(1, len(x)):  # the last token of a completion predicts nothing that we need
                tree.setdefault(x[:i], []).append(c)
    every = [tuple(x) for group in completions for x in group]
    length = max(map(len, every))
    check_context(lm, before.prompts, length)
    scored, row, at = [], 0, {}
    for chosen in chunks([1 + len(tree) for tree in trees], lm.chunk):
        part = before.some(chosen)
        logits, grown = part.last[:, None], [trees[q] for q in chosen]  # of the first token, (R, 1, V)
        if any(grown):
            rows = Rows(lm, part, max(len(distinct[q]) for q in chosen))
            logits = torch.cat([logits, rows.feed(part.prompts, grown)], dim=1)  # (R, 1 + W, V)
        logp = (logits if temperature == 1 else logits.float() / temperature).log_softmax(-1, dtype=torch.float32)
        places = []  # row, column and token of each log-probability; the mask hides those of no use
        for r, (q, tree) in enumerate(zip(chosen, grown, strict=True)):
            column = {x: logp.shape[1] - len(tree) + i for i, x in enumerate(tree)} | {(): 0}
            for x in distinct[q]:
                own = [(r, column[x[:i]], token) for i, token in enumerate(x)]
                places.append(own + [(r, 0, 0)] * (length - len(x)))
                at[q, x], row = row, row + 1
        which, column, token = torch.tensor(places, device=lm.device).unbind(-1)  # (D, T) each
        scored.append(logp[which, column, token])
    order = [at[q, tuple(x)] for q, group in enumerate(completions) for x in group]
    mask = torch.tensor([[1] * len(x) + [0] * (length - len(x)) for x in every], device=lm.device)
    return torch.cat(scored)[order] * mask, mask

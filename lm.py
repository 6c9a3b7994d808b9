"""The language model: load it, read prompts, sample from it, score what it said, embed sentences.

    read                  prompts -> their KV cache; what all of them begin with is read once
    sample                the cache expanded to the completions, a token of each at a time; finished rows leave
    completion_logprobs   the same cache, all tokens of a completion at once, with gradients

This is the plain engine. Rows are padded on the left, so that a 2-D mask and positions are all that a model has to
know: relative positions, sliding windows and ALiBi come out right. infra/sharing.py has the last two functions again,
several times faster for short completions; `LM.engine` chooses.

Left out: Hugging Face `generate`, whose hidden top_k=50 and generation defaults change what is sampled from.

From infra: cache (forks), encoders, models (loading, refusing), text (encoding), files.seed_of.
"""

import inspect
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

from infra.cache import empty, equal_widths, fork, keep, stateful
from infra.encoders import checked
from infra.files import seed_of  # noqa: F401, offered again as lm.seed_of
from infra.models import capacity, check_context, find, load_pretrained  # noqa: F401, lm.find
from infra.text import Text, ended, stop_ids  # noqa: F401, lm.stop_ids
from lora import adapter

logging.disable_progress_bar()  # of loading; the hub's, of a download, stays
LOGITS = 2**25  # held at once, 128 MiB of them: 680 tokens of a vocabulary of 49,152. On a GPU times `capacity`
CACHED = 2**16  # tokens in the caches of the rows that are sampled at once, the same
SHORT = 16  # tokens; longer completions have little to share


@dataclass(frozen=True, eq=False)
class LM(Text):
    """A frozen causal language model or sentence encoder, and its tokenizer; `model` where `lm` is this module."""

    model: nn.Module
    tokenizer: object
    name: str
    sharing: object = None  # the module infra.sharing, where it may be used
    longest_shared: int = SHORT  # tokens
    pooling: str = "lasttoken"  # of an encoder's tokens to a sentence

    @property
    def device(self):
        return next(self.model.parameters()).device

    @property
    def chunk(self):
        """Tokens whose logits are held at once."""
        return max(1, capacity(self.device) * LOGITS // self.model.config.get_text_config().vocab_size)

    def rows(self, tokens):
        """Rows of so many tokens that are sampled at once."""
        return max(1, min(capacity(self.device) * CACHED // tokens, self.chunk))

    def engine(self, tokens):
        """The module, this one or infra.sharing, that suits completions of up to so many tokens."""
        return self.sharing if self.sharing and tokens <= self.longest_shared else sys.modules[__name__]

    def forward(self, ids, mask, cache, tail=0):
        """Feed each row T more tokens; its cache grows by them. ids (R, T) -> logits (R, T, V), or of the last `tail`.

        mask: 1 on real tokens and 0 on padding, in the cache and in ids, (R, C + T).
        """
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        accepted = inspect.signature(self.model.forward).parameters  # ALiBi has no positions
        optional = {"position_ids": positions, "logits_to_keep": tail}
        optional = {name: value for name, value in optional.items() if name in accepted}
        out = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **optional)
        return out.logits[:, -tail:]


def load(name_or_path, device="cpu", dtype=torch.float32, auto_class=AutoModelForCausalLM):
    """A hub id or a folder -> LM in evaluation mode with frozen weights. Raises ValueError if there is none.

    No code from the folder is run. Evaluation mode switches dropout off for good: GPT-2's would make ratios random.
    """
    model, tokenizer = load_pretrained(name_or_path, auto_class, dtype)
    return LM(model.to(device).eval().requires_grad_(False), tokenizer, str(name_or_path))


# ---- read prompts -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Read:
    """Q prompts that the model has read. Row q of the cache ends with prompt q; what is before it is padding."""

    prompts: list  # Q lists of token ids
    cache: DynamicCache  # keys and values of each layer, (Q, heads, C, d)
    last: torch.Tensor | None = None  # logits of each prompt's next token, (Q, V)

    def some(self, rows, room=0):
        """Select prompts, any number of times each, with room in the cache for so many more tokens. -> Read"""
        at = torch.tensor(rows, device=self.last.device)
        return Read([self.prompts[q] for q in rows], fork(self.cache, at, room=room), self.last[at])

    def mask(self, more=0):
        """1 on real tokens, the `more` new ones included. -> (Q, C + more)"""
        return real(self.prompts, self.cache.get_seq_length(), more, self.last.device)


def real(prompts, columns, more, device):
    """The mask of prompts that end at column `columns`, and of `more` real tokens after them. -> (R, columns + more)"""
    padding = torch.tensor([[columns - len(p)] for p in prompts], device=device)
    return (torch.arange(columns + more, device=device) >= padding).long()


def read(lm, prompts):
    """Q lists of token ids -> Read; what all of them begin with is read once. Gradients flow where they are on."""
    limit = min(map(len, prompts)) - 1  # each prompt keeps a token of its own
    shared = next((i for i in range(limit) if len({p[i] for p in prompts}) > 1), limit)
    stem = Read([[]], empty(lm.model))
    stem = read_on(lm, stem, [0], [prompts[0][:shared]]) if shared else stem
    return read_on(lm, stem, [0] * len(prompts), prompts)


@equal_widths
def read_on(lm, before, rows, prompts):
    """Read longer prompts: prompts[i] begins with what row rows[i] of `before` has read, and has more. -> Read

    Every row is fed T tokens, as many as the longest has new. A row with fewer new ones is padded on the left, and its
    old cache is shifted right, over the padding, so that its real tokens stay together.
    """
    check_context(lm, prompts)
    new = [p[len(before.prompts[r]) :] for p, r in zip(prompts, rows, strict=True)]
    columns, width = before.cache.get_seq_length(), max(map(len, new))
    shift = torch.tensor([width - len(x) for x in new], device=lm.device)
    cache = fork(before.cache, torch.tensor(rows, device=lm.device), shift if shift.any() else None)
    ids = torch.tensor([[0] * (width - len(x)) + x for x in new], device=lm.device)  # (R, T)
    last = lm.forward(ids, real(prompts, columns + width, 0, lm.device), cache, tail=1)[:, 0]
    return Read(prompts, cache, last)


# ---- sample and score -------------------------------------------------------------------------------------------


def uniform(seeds, n, tokens, device):
    """The random numbers that decide n completions of each prompt, whatever else is in a batch. -> (Q, n, T) float64"""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(n, tokens, dtype=torch.float64, generator=g) for g in generators]).to(device)


def pick(logits, temperature, number):
    """Tokens of softmax(logits / temperature) by inverse CDF, greedy at 0. (..., V), float, (..., n) -> (..., n)"""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True).expand_as(number)
    cdf = torch.softmax(logits.float() / temperature, dim=-1).double().cumsum(-1)
    return torch.searchsorted(cdf, number * cdf[..., -1:], right=True).clamp_max(logits.shape[-1] - 1)


@torch.no_grad()
def sample(lm, prompts, temperatures, max_new_tokens, stop, seeds, logprobs=False, blank=frozenset()):
    """Sample len(temperatures) completions of each prompt, from softmax(logits / temperature) without truncation.

    prompts: Q lists of token ids, or a Read of them; temperatures: one per completion, 0 is greedy; stop: the token ids
    that end a completion, unless all that it has is `blank`; seeds: one per prompt. -> Q lists of lists of token ids,
    with the stop token; with logprobs also the log-probability of each at temperature 1, Q lists of floats, in nats.
    Numbers depend on the seed: the batch matters by rounding at most. Raises ValueError beyond the context.
    """
    before = prompts if isinstance(prompts, Read) else read(lm, prompts)
    check_context(lm, before.prompts, max_new_tokens)
    size, n = len(before.prompts), len(temperatures)
    numbers = uniform(seeds, n, max_new_tokens, lm.device).flatten(0, 1)  # (Q n, T)
    temperature = torch.tensor(temperatures, device=lm.device).repeat(size)  # (Q n)
    out, logp = [[] for _ in range(size * n)], torch.zeros(size * n, device=lm.device)
    at_once = lm.rows(before.cache.get_seq_length() + max_new_tokens)
    for start in range(0, size * n, at_once):
        rows = torch.arange(start, min(start + at_once, size * n), device=lm.device)  # completions still going, (R,)
        batch = before.some((rows // n).tolist(), room=max_new_tokens)
        logits, cache, mask = batch.last, batch.cache, batch.mask()  # (R, V)
        for step in range(max_new_tokens):
            token = torch.empty_like(rows)
            for t in set(temperatures):
                same = temperature[rows] == t
                token[same] = pick(logits[same], t, numbers[rows[same], step, None])[:, 0]
            if logprobs:
                logp[rows] += logits.float().log_softmax(-1).gather(1, token[:, None])[:, 0]
            for row, chosen in zip(rows.tolist(), token.tolist(), strict=True):
                out[row].append(chosen)
            going = [i for i, r in enumerate(rows.tolist()) if not ended(out[r], stop, blank)]
            if not going or step + 1 == max_new_tokens:
                break
            if len(going) < len(rows):
                order = torch.tensor(keep(cache, going), device=lm.device)
                rows, token, mask = rows[order], token[order], mask[order]
            mask = F.pad(mask, (0, 1), value=1)
            logits = lm.forward(token[:, None], mask, cache)[:, 0]
    out = [out[q * n : q * n + n] for q in range(size)]
    return (out, logp.view(size, n).tolist()) if logprobs else out


def completion_logprobs(lm, prompts, completions, temperature=1.0):
    """log π(token | prompt, earlier tokens) of every token of the completions, at the temperature of sampling.

    prompts: Q lists of token ids, or a Read of them; completions: Q lists of lists of token ids. Returns logp and mask,
    (B, T), where B counts all completions in order and the mask is 1 on real tokens, by length. Gradients flow on.
    """
    before = prompts if isinstance(prompts, Read) else read(lm, prompts)
    every = [(q, tuple(x)) for q, group in enumerate(completions) for x in group]
    distinct, length = list(dict.fromkeys(every)), max(len(x) for _, x in every)  # equal ones are scored once
    check_context(lm, before.prompts, length)
    scored, at_once = [], max(1, lm.chunk // length)
    for start in range(0, len(distinct), at_once):
        rows = distinct[start : start + at_once]
        ids = torch.tensor([x + (0,) * (length - len(x)) for _, x in rows], device=lm.device)  # (R, T)
        batch = before.some([q for q, _ in rows])
        logits = batch.last[:, None]  # of the first token
        if length > 1:
            fed = max(1 + stateful(batch.cache), length - 1)  # one token's step would have no gradient
            later = lm.forward(ids[:, :fed], batch.mask(fed), batch.cache)
            logits = torch.cat([logits, later[:, : length - 1]], dim=1)  # (R, T, V)
        logp = (logits if temperature == 1 else logits.float() / temperature).log_softmax(-1, dtype=torch.float32)
        scored.append(logp.gather(2, ids[:, :, None])[..., 0])
    place = {x: i for i, x in enumerate(distinct)}
    mask = torch.tensor([[1] * len(x) + [0] * (length - len(x)) for _, x in every], device=lm.device)
    return torch.cat(scored)[[place[x] for x in every]] * mask, mask


# ---- sentence embeddings ----------------------------------------------------------------------------------------


def load_embedder(name_or_path, lm):
    """A sentence encoder by hub id or folder; "self" is the language model itself."""
    return lm if name_or_path == "self" else checked(load(name_or_path, lm.device, auto_class=AutoModel), embed)


@torch.no_grad()
def embed(embedder, texts, batch_size=256):
    """Sentences -> (N, d) float32 numpy array of unit length, of the last hidden states.

    Of a sentence encoder, most often, their mean; of a language model that of the last token, which has seen all.
    """
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    base, device = embedder.model.base_model, embedder.device
    blank = "" if embedder.model.get_output_embeddings() is None else " "  # before whole words
    found = {}
    for i in range(0, len(unique), batch_size):
        batch = unique[i : i + batch_size]
        ids = [embedder.cut(blank + text) or [0] for text in batch]  # an empty text may have no token
        width = max(map(len, ids))
        mask = torch.tensor([[1] * len(x) + [0] * (width - len(x)) for x in ids], device=device)
        padded = torch.tensor([x + [0] * (width - len(x)) for x in ids], device=device)
        with adapter(embedder, False):
            hidden = base(input_ids=padded, attention_mask=mask).last_hidden_state.float()  # (N, T, d)
        at = {"mean": mask, "cls": F.one_hot(mask[:, 0] - 1, width), "lasttoken": F.one_hot(mask.sum(1) - 1, width)}
        pooled = (hidden * at[embedder.pooling][..., None]).sum(1)  # (N, d)
        found.update(zip(batch, F.normalize(pooled, dim=-1).cpu(), strict=True))
    return torch.stack([found[text] for text in texts]).numpy()

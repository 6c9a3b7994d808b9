"""The language model: load it, sample from it, score what it said, embed sentences.

Sampling and scoring share one idea: each token is computed once. A batch of prompts has a common beginning (the
few-shot preamble); its KV cache is computed once and expanded to the prompts, with gradients on. Each prompt has many
completions; they are written side by side into the *same* row, as a tree whose branches the attention mask hides from
one another, so that completions that begin alike share their beginning:

    common prefix (1, P)  ->  prompts (Q, L)  ->  completions (Q, at most n tokens a step, or all of them at once)

Left out: Hugging Face `generate`, which applies a hidden top_k=50 and the model's own generation defaults, so that
its samples do not come from softmax(logits / temperature).
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from lora import adapter


@dataclass(frozen=True, eq=False)
class LM:
    """A frozen causal language model (or a sentence encoder) and its tokenizer."""

    model: nn.Module
    tokenizer: object
    name: str

    @property
    def device(self):
        return next(self.model.parameters()).device

    def encode(self, text, special=False):
        return self.tokenizer(text, add_special_tokens=special).input_ids

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def find(name_or_path):
    """Raises ValueError, in one sentence, unless there is a model of this name; loads no weights."""
    path = Path(name_or_path)
    # a name beside existing files is meant as a path, and the hub need not be asked
    local = path.is_absolute() or path.is_file() or path.parent != Path() and path.parent.is_dir()
    why = ""
    try:
        if path.is_dir() or not local:
            AutoConfig.from_pretrained(name_or_path)
            return
    except (OSError, ValueError, KeyError) as error:
        why = " (" + str(error).strip().split("\n")[0] + ")"
    raise ValueError(f"no model at {str(name_or_path)!r}: neither a model folder nor a hub id in reach{why}")


def load(name_or_path, device="cpu", dtype=torch.float32, auto_class=AutoModelForCausalLM):
    """A hub id or a folder -> LM in evaluation mode with frozen weights. Raises ValueError if there is none.

    Evaluation mode switches dropout off for good: GPT-2's default of 0.1 would make the ratio of new to old
    probabilities random.
    """
    find(name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    if not tokenizer("a").input_ids:  # what transformers makes of a folder without one
        raise ValueError(f"{name_or_path} has no tokenizer")
    model = auto_class.from_pretrained(name_or_path, dtype=dtype)
    return LM(model.to(device).eval().requires_grad_(False), tokenizer, str(name_or_path))


# ---- one row per prompt, with all of its completions side by side -----------------------------------------------


class _Rows:
    """The KV cache of Q prompts with n completions each. Each column knows its position and whose it is."""

    def __init__(self, lm, prompts, n):
        """Compute the longest common prefix once, then what is each prompt's own; `self.last` is (Q, 1, V)."""
        self.lm, self.n, self.cache = lm, n, DynamicCache()
        # each prompt keeps at least one token of its own: its last logits start the completion
        limit = min(map(len, prompts)) - 1
        shared = next((i for i in range(limit) if len({p[i] for p in prompts}) > 1), limit)
        self.position = torch.empty(1, 0, dtype=torch.long, device=lm.device)  # (Q, C)
        self.members = torch.empty(1, 0, n, dtype=torch.bool, device=lm.device)  # (Q, C, n)
        everyone = range(n)
        if shared:
            self.extend([prompts[0][:shared]], [[everyone] * shared], [range(shared)], keep=1)
        self.select([0] * len(prompts))
        own = [p[shared:] for p in prompts]
        self.last = self.extend(own, [[everyone] * len(x) for x in own], [range(shared, len(p)) for p in prompts], 1)

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
        return model(
            input_ids=ids, attention_mask=masks, position_ids=position, past_key_values=self.cache,
            use_cache=True, logits_to_keep=keep,
        ).logits  # fmt: skip


def seed_of(*parts):
    """A seed from names and numbers, the same in every process (Python's own `hash` is salted)."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:7], "big")


@functools.cache
def stop_ids(lm, characters="\n"):
    """The tokens that end a completion: every eos of the model and every token that contains one of `characters`."""
    eos = {lm.tokenizer.eos_token_id}
    for config in (lm.model.generation_config, lm.model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        eos |= set(ids) if isinstance(ids, list | tuple) else {ids}
    texts = lm.tokenizer.batch_decode([[i] for i in range(len(lm.tokenizer))])
    return frozenset(i for i in eos if isinstance(i, int)) | {
        i for i, text in enumerate(texts) if any(c in text for c in characters)
    }


def _pick(logits, temperature, uniform):
    """Inverse-CDF sampling, (R, S, V), (n,), (R, n) -> (R, S, n): a token of each completion from each distribution.

    One uniform number decides a token, whatever else is in the batch. Temperature 0 is greedy.
    """
    uniform = uniform[:, None].expand(-1, logits.shape[1], -1)  # (R, S, n)
    token = logits.argmax(-1, keepdim=True).expand_as(uniform)
    for t in temperature.unique().tolist():
        if t > 0:
            cdf = torch.softmax(logits.float() / t, dim=-1).double().cumsum(-1)
            drawn = torch.searchsorted(cdf, uniform * cdf[..., -1:], right=True).clamp_max(logits.shape[-1] - 1)
            token = torch.where(temperature == t, drawn, token)
    return token


@torch.no_grad()
def sample(lm, prompts, temperatures, max_new_tokens, stop, seeds):
    """Sample len(temperatures) completions of each prompt, from softmax(logits / temperature) without truncation.

    prompts: Q lists of token ids; temperatures: one per completion, 0 is greedy; stop: set of token ids; seeds: one
    per prompt. Returns Q lists of lists of token ids; a stop token, where one was sampled, is the last.
    A completion depends on its own seed alone, not on its batch. Raises ValueError beyond the model's context.
    """
    context = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, prompts)) + max_new_tokens
    if context and longest > context:
        raise ValueError(f"a prompt of {longest - max_new_tokens} tokens and {max_new_tokens} new ones exceed the "
                         f"model's context of {context}")  # fmt: skip
    n, device = len(temperatures), lm.device
    uniform = torch.stack([
        torch.rand(n, max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]).to(device)  # (Q, n, T)  # fmt: skip
    temperature = torch.tensor(temperatures, dtype=torch.float64, device=device)
    rows = _Rows(lm, prompts, n)
    out = [[[] for _ in range(n)] for _ in prompts]
    # each row of the batch is a prompt and its unfinished completions, in groups of those that are equal so far
    left, groups, logits = list(range(len(prompts))), [[list(range(n))] for _ in prompts], rows.last  # (R, S, V)
    for step in range(max_new_tokens):
        drawn = _pick(logits, temperature, uniform[left, :, step]).tolist()  # (R, S, n)
        trees = []
        for q, row, tokens in zip(left, groups, drawn, strict=True):
            tree = {}
            # the padding is in front
            for group, token in zip(row, tokens[len(tokens) - len(row) :], strict=True):
                for c in group:
                    out[q][c].append(token[c])
                    if token[c] not in stop:
                        tree.setdefault(tuple(out[q][c]), []).append(c)
            trees.append(tree)
        going = [r for r, tree in enumerate(trees) if tree]
        if not going or step + 1 == max_new_tokens:
            break
        if len(going) < len(left):
            rows.select(going)
            left, trees = [left[r] for r in going], [trees[r] for r in going]
        groups = [list(tree.values()) for tree in trees]
        logits = rows.extend(
            [[prefix[-1] for prefix in tree] for tree in trees], groups,
            [[len(prompts[q]) + step] * len(tree) for q, tree in zip(left, trees, strict=True)],
        )  # fmt: skip
    return out


def completion_logprobs(lm, prompts, completions, temperature=1.0):
    """log π(token | prompt, earlier tokens) of every completion token, at the temperature it was sampled with.

    prompts: Q lists of token ids; completions: Q lists of lists of token ids. Returns logp (B, T) and mask (B, T),
    where B counts all completions in order and the mask is 1 on real tokens (it comes from lengths, not from token
    values, because the padding token may be eos). Gradients flow through what is shared: the prompt, and the
    beginnings that completions of a group have in common, each computed once.
    """
    rows = _Rows(lm, prompts, max(map(len, completions)))
    trees = [{} for _ in prompts]  # each beginning of a completion, and the completions that have it
    for tree, group in zip(trees, completions, strict=True):
        for c, x in enumerate(group):
            for i in range(1, len(x)):  # the last token of a completion predicts nothing that we need
                tree.setdefault(tuple(x[:i]), []).append(c)
    logits = rows.last  # (Q, 1, V) predicts every first token
    if any(trees):
        packed = rows.extend(
            [[x[-1] for x in tree] for tree in trees], [list(tree.values()) for tree in trees],
            [[len(p) + len(x) - 1 for x in tree] for p, tree in zip(prompts, trees, strict=True)],
        )  # fmt: skip
        logits = torch.cat([logits, packed], dim=1)  # (Q, 1 + W, V)
    logits = logits.float() / temperature

    batch = [(q, x) for q, group in enumerate(completions) for x in group]
    length = max(len(x) for _, x in batch)
    where = torch.zeros(3, len(batch), length, dtype=torch.long)  # row, column and token of each log-probability
    columns = [{x: logits.shape[1] - len(tree) + i for i, x in enumerate(tree)} for tree in trees]
    for b, (q, x) in enumerate(batch):
        where[0, b] = q
        where[1, b, 1 : len(x)] = torch.tensor([columns[q][tuple(x[:i])] for i in range(1, len(x))], dtype=torch.long)
        where[2, b, : len(x)] = torch.tensor(x)
    row, column, token = where.to(lm.device)
    mask = torch.tensor([[1] * len(x) + [0] * (length - len(x)) for _, x in batch], device=lm.device)
    logp = logits[row, column, token] - logits.logsumexp(-1)[row, column]
    return logp * mask, mask


# ---- sentence embeddings ----------------------------------------------------------------------------------------


def load_embedder(name_or_path, lm):
    """A sentence encoder by hub id or folder; "self" is the language model itself."""
    return lm if name_or_path == "self" else load(name_or_path, lm.device, auto_class=AutoModel)


@torch.no_grad()
def embed(embedder, texts, batch_size=256):
    """Sentences -> (N, d) float32 numpy array of unit length: the mean of the last hidden states over the tokens."""
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    base, device = embedder.model.base_model, embedder.device
    blank = " " if embedder.model.get_output_embeddings() is not None else ""
    found = {}
    for i in tqdm(range(0, len(unique), batch_size), desc="embedding", unit="batch", disable=len(unique) <= batch_size):
        batch = unique[i : i + batch_size]
        # a language model knows words by the blank before them; an empty text may have no token at all
        ids = [embedder.encode(blank + text, special=True) or [0] for text in batch]
        width = max(map(len, ids))
        mask = torch.tensor([[1] * len(x) + [0] * (width - len(x)) for x in ids], device=device)
        padded = torch.tensor([x + [0] * (width - len(x)) for x in ids], device=device)
        with adapter(embedder, False):
            hidden = base(input_ids=padded, attention_mask=mask).last_hidden_state.float()  # (N, T, d)
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        found.update(zip(batch, F.normalize(mean, dim=-1).cpu(), strict=True))
    return torch.stack([found[text] for text in texts]).numpy()

"""The language model: load it, sample from it, score what it said, embed sentences.

Sampling and scoring compute each token once (prefix.py): what prompts or completions begin with alike is shared.

Left out: Hugging Face `generate`, which applies a hidden top_k=50 and the model's own generation defaults, so that
its samples do not come from softmax(logits / temperature).
"""

import functools
import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from cost import Size, Work
from lora import adapter
from prefix import LOGITS, Read, check_context, chunks, feed, tree_of
from settings import nearest_file

logging.disable_progress_bar()  # of loading; the hub's, of a download, stays
BREAK = "\ue000"  # of private use; what stands on its two sides is encoded apart


@dataclass(frozen=True, eq=False)
class LM:
    """A frozen causal language model (or a sentence encoder) and its tokenizer."""

    model: nn.Module
    tokenizer: object
    name: str
    work: Work = field(default_factory=Work)  # counts what it costs

    @property
    def device(self):
        return next(self.model.parameters()).device

    @property
    def chunk(self):
        """Tokens scored at once."""
        return LOGITS // self.model.config.get_text_config().vocab_size

    def encode(self, text, special=False):
        first, *rest = text.split(BREAK)
        ids = self.tokenizer(first, add_special_tokens=special).input_ids
        return ids + [i for part in rest for i in self.proceed(part)]

    def plain(self, text):
        """A text that `encode` takes for ordinary characters, also where it spells a special token, as "</s>" does."""
        text = text.replace(BREAK, "")
        return self._special.sub(lambda match: match[0] + BREAK, text) if self._special else text

    @functools.cached_property
    def _special(self):
        """Finds the first character of each name of a token that is no part of the language."""
        names = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        names = [re.escape(name[0]) + f"(?={re.escape(name[1:])})" for name in names if len(name) > 1 and name.strip()]
        return re.compile("|".join(names)) if names else None

    def proceed(self, text):
        """The tokens of a text that goes on after another one. Some tokenizers put a blank before what comes first."""
        before = "." if text[:1].isspace() else "\n"  # what no tokenizer takes for a part of the same word
        first, both = self.encode(before), self.encode(before + text)
        return both[len(first) :] if both[: len(first)] == first else self.encode(text)

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
            AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
            return
    except (OSError, ValueError, KeyError) as error:
        why = " (" + str(error).strip().split("\n")[0] + ")"
    near = nearest_file(path)
    raise ValueError(f"no model at {str(name_or_path)!r}: neither a model folder nor a hub id in reach{why}"
                     + (f"; {near}" if near else ""))  # fmt: skip


def load(name_or_path, device="cpu", dtype=torch.float32, auto_class=AutoModelForCausalLM):
    """A hub id or a folder -> LM in evaluation mode with frozen weights. Raises ValueError if there is none.

    Weights come from safetensors files alone, and no code from the folder is run.

    Evaluation mode switches dropout off for good: GPT-2's default of 0.1 would make the ratio of new to old
    probabilities random.
    """
    find(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except (ValueError, ImportError, KeyError) as error:  # a file that is damaged, a package that is missing
        raise ValueError(f"{name_or_path} has no readable tokenizer: {str(error).splitlines()[0][:200]}") from None
    if not tokenizer("a").input_ids:  # what transformers makes of a folder without one
        raise ValueError(f"{name_or_path} has no tokenizer")
    try:
        model, found = auto_class.from_pretrained(
            name_or_path, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    # an encoder-decoder, say, a file that is cut short, weights of another shape
    except (ValueError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{name_or_path}: {str(error).splitlines()[0][:200]}") from None
    missing = [name for name in sorted(found["missing_keys"]) if "pooler" not in name]  # which nothing here uses
    if missing:
        raise ValueError(f"{name_or_path} lacks {len(missing)} of its weights, as {missing[0]}")
    return LM(model.to(device).eval().requires_grad_(False), tokenizer, str(name_or_path))


def save(model, tokenizer, folder, card=""):
    """Write an ordinary Hugging Face folder, with a model card if there is one; whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    except Exception as error:  # libraries that raise no OSError where a disk is full
        raise OSError(f"{temporary}: {error}") from None
    if card:
        (temporary / "README.md").write_text(card, encoding="utf-8")
    temporary.rename(folder)


def seed_of(*parts):
    """A seed from names and numbers, the same in every process (Python's own `hash` is salted)."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:7], "big")


@functools.lru_cache(maxsize=4)  # not all models that ever were
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
    some = max(1, LOGITS // logits[0].numel())  # rows at a time
    for t in temperature.unique().tolist():
        if t > 0:
            drawn = []
            for part, u in zip(logits.split(some), uniform.split(some), strict=True):
                cdf = torch.softmax(part.float() / t, dim=-1).double().cumsum(-1)
                drawn.append(torch.searchsorted(cdf, u * cdf[..., -1:], right=True).clamp_max(logits.shape[-1] - 1))
            token = torch.where(temperature == t, torch.cat(drawn), token)
    return token


@torch.no_grad()
def sample(lm, prompts, temperatures, max_new_tokens, stop, seeds, heads=None, logprobs=False):
    """Sample len(temperatures) completions of each prompt, from softmax(logits / temperature) without truncation.

    prompts: Q lists of token ids, or a prefix.Read of them; temperatures: one per completion, 0 is greedy; stop: set of
    token ids; seeds: one per prompt; heads: what each completion is to begin with, Q lists of lists of token ids.
    Returns Q lists of lists of token ids, without the heads; a stop token, where one was sampled, is the last. With
    logprobs also log softmax(logits) of each completion, at temperature 1 whatever it was sampled at: Q lists of lists
    of floats, in nats. A completion depends on its own seed alone, not on its batch. Raises ValueError beyond the
    model's context.
    """
    n, device = len(temperatures), lm.device
    read, prompts = (prompts, prompts.prompts) if isinstance(prompts, Read) else (None, prompts)
    heads = heads or [[[]] * n for _ in prompts]
    check_context(lm, [p + max(row, key=len) for p, row in zip(prompts, heads, strict=True)], max_new_tokens)
    uniform = torch.stack([
        torch.rand(n, max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]).to(device)  # (Q, n, T)  # fmt: skip
    temperature = torch.tensor(temperatures, dtype=torch.float64, device=device)
    rows = (read or Read(lm, prompts)).rows(range(len(prompts)), n)
    out, logp = [[list(head) for head in row] for row in heads], [[0.0] * n for _ in prompts]
    # each row of the batch is a prompt and its unfinished completions, in groups of those that are equal so far
    left, groups, logits = list(range(len(prompts))), [[list(range(n))] for _ in prompts], rows.last  # (R, S, V)
    if any(any(row) for row in heads):
        logits, groups = _after_heads(rows, prompts, heads)
    for step in range(max_new_tokens):
        drawn = _pick(logits, temperature, uniform[left, :, step])  # (R, S, n)
        chosen = torch.zeros_like(drawn, dtype=torch.float32)
        if logprobs:
            chosen = logits.gather(-1, drawn).float() - logits.float().logsumexp(-1, keepdim=True)
        trees = []
        for q, row, tokens, terms in zip(left, groups, drawn.tolist(), chosen.tolist(), strict=True):
            tree, padding = {}, len(tokens) - len(row)  # the padding is in front
            for group, token, term in zip(row, tokens[padding:], terms[padding:], strict=True):
                for c in group:
                    out[q][c].append(token[c])
                    logp[q][c] += term[c]
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
        logits = feed(rows, [prompts[q] for q in left], trees)
    new = [[x[len(h) :] for x, h in zip(*pair, strict=True)] for pair in zip(out, heads, strict=True)]
    return (new, logp) if logprobs else new


def _after_heads(rows, prompts, heads):
    """Feed what the completions begin with. -> logits (R, S, V) after each different head, and whose head it is"""
    groups, trees = [], []
    for row in heads:
        group = {}
        for c, head in enumerate(row):
            group.setdefault(tuple(head), []).append(c)
        tree = tree_of(row)
        groups.append(group)
        trees.append({x: tree[x] for x in [x for x in tree if x not in group] + [x for x in group if x]})
    width = max(map(len, groups))
    packed = torch.cat([rows.last, feed(rows, prompts, trees, keep=width)], dim=1)
    columns = []
    for group in groups:
        ends = [x for x in group if x]
        place = {x: packed.shape[1] - len(ends) + i for i, x in enumerate(ends)}
        columns.append([0] * (width - len(group)) + [place.get(x, 0) for x in group])  # 0: after the empty head
    column = torch.tensor(columns, device=packed.device)  # (R, S)
    logits = packed.gather(1, column[:, :, None].expand(-1, -1, packed.shape[2]))
    return logits, [list(group.values()) for group in groups]


def completion_logprobs(lm, prompts, completions, temperature=1.0, recompute=False, given=0):
    """log π(token | prompt, earlier tokens) of every completion token, at the temperature it was sampled with.

    prompts: Q lists of token ids, or a prefix.Read of them; completions: Q lists of lists of token ids. Returns logp
    (B, T) and mask (B, T), where B counts all completions in order and the mask is 1 on real tokens (it comes from
    lengths, not from token values, because the padding token may be eos). Gradients flow through what is shared: the
    beginning of all prompts, each prompt, and the beginnings that completions of a group have in common, each computed
    once. Nothing flows through a frozen prompt, and the first token after it is the base model's alone.
    recompute: keep no activations and compute each chunk again in the backward pass (gradient checkpointing).
    given: so many first tokens of each completion were nobody's choice; they get no log-probability and no mask.
    """
    distinct = [list(dict.fromkeys(map(tuple, group))) for group in completions]  # equal ones are scored once
    # the last token of a completion predicts nothing that we need; what predicts something comes last in the tree
    trees = []
    for group in distinct:
        tree = tree_of([x[:-1] for x in group])
        trees.append({x: tree[x] for x in sorted(tree, key=lambda x: len(x) >= given)})
    length = max(len(x) for group in completions for x in group)
    read = prompts if isinstance(prompts, Read) else Read(lm, prompts)
    prompts = read.prompts

    def score(chunk):
        """logp of the different completions of some of the prompts, (D, T)."""
        rows = read.rows(chunk, max(len(distinct[q]) for q in chunk))
        logits, grown = [], [trees[q] for q in chunk]
        if not given or not any(grown):
            logits.append(rows.last)  # (R, 1, V) predicts every first token
        if any(grown):
            keep = max(sum(len(x) >= given for x in tree) for tree in grown)
            logits.append(feed(rows, [prompts[q] for q in chunk], grown, max(keep, 1)))
        logits = torch.cat(logits, dim=1) if len(logits) > 1 else logits[0]  # (R, W, V)
        logp = (logits if temperature == 1 else logits.float() / temperature).log_softmax(-1, dtype=torch.float32)
        places = []  # row, column and token of each log-probability; the mask hides those of no use
        for r, (q, tree) in enumerate(zip(chunk, grown, strict=True)):
            column = {x: max(logp.shape[1] - len(tree) + i, 0) for i, x in enumerate(tree)}
            for x in distinct[q]:
                at = [(r, column.get(x[:i], 0), token) for i, token in enumerate(x)]
                places.append(at + [(r, 0, 0)] * (length - len(x)))
        row, column, token = torch.tensor(places, device=lm.device).unbind(-1)  # (D, T) each
        return logp[row, column, token]

    scored, row, at = [], 0, {}
    sizes = [len(tree) + (0 if read.frozen else len(p) - read.shared) for p, tree in zip(prompts, trees, strict=True)]
    for chunk in chunks(sizes, lm.chunk):
        scored.append(checkpoint(score, chunk, use_reentrant=False) if recompute else score(chunk))
        for q in chunk:
            at[q] = {x: row + i for i, x in enumerate(distinct[q])}
            row += len(distinct[q])
    logp = torch.cat(scored)[[at[q][tuple(x)] for q, group in enumerate(completions) for x in group]]  # (B, T)
    lengths = torch.tensor([len(x) for group in completions for x in group], device=lm.device)
    token = torch.arange(length, device=lm.device)
    mask = ((token >= given) & (token < lengths[:, None])).long()  # (B, T)
    return logp * mask, mask


# ---- sentence embeddings ----------------------------------------------------------------------------------------


def load_embedder(name_or_path, lm):
    """A sentence encoder by hub id or folder; "self" is the language model itself. Its work counts as the model's."""
    if name_or_path == "self":
        return lm
    return replace(load(name_or_path, lm.device, auto_class=AutoModel), work=lm.work)


@torch.no_grad()
def embed(embedder, texts, batch_size=256):
    """Sentences -> (N, d) float32 numpy array of unit length: the mean of the last hidden states over the tokens."""
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    base, device = embedder.model.base_model, embedder.device
    causal = embedder.model.get_output_embeddings() is not None
    blank = " " if causal else ""
    found = {}
    for i in range(0, len(unique), batch_size):
        batch = unique[i : i + batch_size]
        # a language model knows words by the blank before them; an empty text may have no token at all
        ids = [embedder.encode(blank + text, special=True) or [0] for text in batch]
        width = max(map(len, ids))
        mask = torch.tensor([[1] * len(x) + [0] * (width - len(x)) for x in ids], device=device)
        padded = torch.tensor([x + [0] * (width - len(x)) for x in ids], device=device)
        with adapter(embedder, False):
            hidden = base(input_ids=padded, attention_mask=mask).last_hidden_state.float()  # (N, T, d)
            pairs = sum(len(x) * (len(x) + 1) // 2 if causal else len(x) ** 2 for x in ids)
            embedder.work.forward(Size.of(embedder.model), sum(map(len, ids)), pairs)
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        found.update(zip(batch, F.normalize(mean, dim=-1).cpu(), strict=True))
    return torch.stack([found[text] for text in texts]).numpy()

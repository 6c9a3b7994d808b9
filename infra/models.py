"""Model folders: find one, refuse one that cannot be used in one sentence, check the engine on it, write one whole."""

import contextlib
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils.peft_utils import find_adapter_config_file


@contextlib.contextmanager
def refused(what):
    """Whatever libraries raise for a damaged file, a missing package or a model of another kind, as one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or re.search("out of memory|allocate memory", str(error)):
            raise  # that is no one's fault but the machine's
        why = str(error).strip().split("\n")[0][:200]
        raise ValueError(f"{what}: {why}") from None


def find(name_or_path):
    """Raises ValueError, in one sentence, unless there is a model of this name; loads no weights."""
    path, hub_id = Path(name_or_path), re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", str(name_or_path))
    with refused(f"no model at {str(name_or_path)!r}, neither a model folder nor found on the hub"):
        # "Qwen/Qwen2.5-7B" is a hub id, also where there is a folder of the name Qwen
        if not path.is_dir() and (path.exists() or not hub_id):
            raise ValueError("no such folder")
        if find_adapter_config_file(name_or_path):
            raise ValueError("it holds an adapter, which may or may not be loaded with it: merge the two, or delete "
                             "adapter_config.json")  # fmt: skip
        AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)


def load_pretrained(name_or_path, auto_class, dtype):
    """-> model, tokenizer. Raises ValueError, in one sentence, if they are not whole."""
    find(name_or_path)
    with refused(f"{name_or_path} has no readable tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    if not tokenizer("a").input_ids:  # what transformers makes of a folder without one
        raise ValueError(f"{name_or_path} has no tokenizer")
    with refused(name_or_path):
        model, found = auto_class.from_pretrained(
            name_or_path, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    missing = [name for name in sorted(found["missing_keys"]) if "pooler" not in name]  # which nothing here uses
    if missing:
        raise ValueError(f"{name_or_path} lacks {len(missing)} of its weights, as {missing[0]}")
    known = getattr(model.config.get_text_config(), "vocab_size", 2**63)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    largest = max(set(tokenizer.get_vocab().values()) - special, default=0)  # special ones: see `check_context`
    if largest >= known:
        raise ValueError(f"{name_or_path} has a tokenizer with token {largest} and a model of {known} tokens")
    return model, tokenizer


def linear_maps(model):
    """The linear maps that an adapter may change: those of the language model but its head. -> [(name, module)]

    What also looks at pictures has more; what routes tokens to experts returns no map of them.
    """
    head, text = model.get_output_embeddings(), model.config.get_text_config()
    inside = set((model if text is model.config else model.get_decoder()).modules()) - {head}
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m in inside]
    return [(n, m) for n, m in found if "Router" not in type(m).__name__]


def taken_for_experts(model, names):
    """The layers that peft drops from `target_modules`: it renames them as if transformers had not fused experts."""
    fused = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
    return [n for n in names if any(p.ndim == 3 for p in model.parameters()) and n.rpartition(".")[2] in fused]


@torch.no_grad()
def check(lm, engine):
    """Raises ValueError unless an engine gives the log-probabilities of an uncached forward pass without padding.

    Two prompts of different length, longer than the attention windows; two completions each, and a sampled one: a step
    of one token has code of its own in some models.
    """
    config, name = lm.model.config.get_text_config(), type(lm.model).__name__
    windows = {key: value for key, value in vars(config).items()
               if re.search("window|attention_chunk", key) and type(value) is int and "layers" not in key}  # fmt: skip
    # masks read the window from the config at each call, so that a long one is tested as a short one; but without a
    # list of the types of layers, it may be kept elsewhere
    longest = 16 if hasattr(config, "layer_types") else 512
    length = max([12] + [w + 4 for w in windows.values() if w <= longest])
    length = min(length, max(16, context(config) or 2048) - 8)
    ids = torch.randint(config.vocab_size, (length + 3,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts, expected = [ids[:length], ids[: length // 3] + ids[: length // 4]], []
    vars(config).update({key: 8 for key, w in windows.items() if w > longest})
    try:
        with refused(f"{lm.name}: {name} does not take cached prompts"):
            drawn, sums = engine.sample(lm, prompts, [1.0], 8, frozenset(), [0, 1], logprobs=True)
            said = [[ids[-3:], ids[-2:], *group] for group in drawn]
            for prompt, x in ((p, x) for p, group in zip(prompts, said, strict=True) for x in group):
                logits = lm.model(input_ids=torch.tensor([prompt + x], device=lm.device), use_cache=False).logits
                logp = logits[0, -len(x) - 1 : -1].float().log_softmax(-1)[range(len(x)), x]
                expected.append(F.pad(logp, (0, 8 - len(x))))
            expected = torch.stack(expected)
            found, _ = engine.completion_logprobs(lm, prompts, said)
            stepped = torch.tensor(sums, device=lm.device)[:, 0] - expected[2::3].sum(1)
            errors = [torch.cat([e[x != 0], s[None] / 8]) for e, x, s in zip(  # of each prompt's tokens, in nats
                (found - expected).abs().view(2, -1), expected.view(2, -1), stepped.abs(), strict=True)]  # fmt: skip
    finally:
        vars(config).update(windows)
    if expected.isnan().any():
        raise ValueError(f"{lm.name} gives no finite probabilities: are its weights NaN?")
    # half precision rounds logits of 30 by 0.1, and sends some tokens to other experts
    exact = lm.model.dtype == torch.float32
    errors = torch.stack([e.max() if exact else e.median() for e in errors])
    if not (errors < (1e-3 if exact else 0.3)).all():  # nor may one be NaN
        raise ValueError(f"{lm.name}: {name} gives other probabilities with cached prompts than without (by "
                         f"{errors.max():.2g} nats)")  # fmt: skip


def context(config):
    """How many tokens a model can read, or None: where numbers begin to depend on other rows, they would be wrong.

    LongRoPE goes by the longest row, Llama 4's temperature by the column, padding included.
    """
    ropes = getattr(config, "rope_parameters", None) or {}
    ropes = [ropes, *(rope for rope in ropes.values() if isinstance(rope, dict))]  # or one for each type of layer
    limits = [getattr(config, key, None) for key in ("max_position_embeddings", "max_seq_len")]
    limits += [rope["original_max_position_embeddings"] for rope in ropes if rope.get("rope_type") == "longrope"]
    limits.append(getattr(config, "floor_scale", 0) // 2)  # columns are at most twice the longest row
    return min((limit for limit in limits if limit and limit > 0), default=None)


def check_context(lm, prompts, more=0):
    """Raises ValueError where a prompt and `more` tokens exceed the model's context, or have no embedding."""
    config, longest = lm.model.config.get_text_config(), max(map(len, prompts))
    if (context(config) or longest + more) < longest + more:
        raise ValueError(f"a prompt of {longest} tokens and {more} new ones exceed the model's context of "
                         f"{context(config)}")  # fmt: skip
    largest = max(max(prompt, default=0) for prompt in prompts)
    if largest >= config.vocab_size:
        raise ValueError(f"a prompt has token {largest}, and the model knows {config.vocab_size} tokens")


def save(model, tokenizer, folder, card=""):
    """Write an ordinary Hugging Face folder, with a model card if there is one; whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    with refused(f"{temporary} cannot be written"):
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    if card:
        (temporary / "README.md").write_text(card, encoding="utf-8")
    temporary.rename(folder)


def capacity(device):
    """How many times as much as on a CPU is held at once: a GPU has room for it with each 16 GiB of its memory."""
    return max(1, torch.cuda.mem_get_info(device)[1] // 2**34) if device.type == "cuda" else 1


def amp_dtype(amp, device):
    """ "auto|off|bf16|fp16" -> torch dtype or None. auto: off on a CPU, bf16 on a GPU that has it, else fp16."""
    if amp == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        amp = "off" if device.type == "cpu" else "bf16" if fast else "fp16"
    return {"auto": None, "off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]

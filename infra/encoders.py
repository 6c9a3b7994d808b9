"""Sentence encoders: how each pools and how much it reads, which a folder of sentence-transformers says in files of
its own; refused in one sentence if it cannot be used."""

import json
from dataclasses import replace
from pathlib import Path

from tokenizers import normalizers
from transformers.utils import cached_file

from infra.models import refused

KINDS = ("Transformer", "Pooling", "Normalize")
POOLING = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}


def _file(name, file, default):
    """A JSON file of a model folder or of the hub."""
    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else default


def checked(encoder, embed):
    """-> the same encoder with its pooling and its limit. Raises ValueError for one that `embed` gets wrong."""
    name, config = encoder.name, encoder.model.config
    with refused(f"{name} cannot embed sentences"):
        if config.is_encoder_decoder:
            raise ValueError("it has a decoder")
        modules = {m["type"].rpartition(".")[2]: m["path"] for m in _file(name, "modules.json", [])}
        if not modules.keys() <= set(KINDS):
            raise ValueError(f"it has a module {next(iter(modules.keys() - set(KINDS)))} after its pooling")
        said = _file(name, f"{modules['Pooling']}/config.json", {}) if "Pooling" in modules else {}
        on = {said["pooling_mode"]} if "pooling_mode" in said else {k for k, v in said.items() if v is True}
        on = {POOLING.get(mode, mode) for mode in on if mode != "include_prompt"} or {"mean"}
        if len(on) > 1 or not on <= set(POOLING.values()):
            raise ValueError(f"its pooling, {' and '.join(sorted(on))}, is none of {', '.join(POOLING.values())}")
        positions = getattr(config, "max_position_embeddings", None)
        if positions and config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
            positions -= 2  # which they never use
        said = _file(name, "sentence_bert_config.json", {})
        if said.get("do_lower_case"):  # before the tokenizer's own changes
            core = encoder.tokenizer.backend_tokenizer
            core.normalizer = normalizers.Sequence([normalizers.Lowercase(), *filter(None, [core.normalizer])])
        limit = min(filter(None, (encoder.tokenizer.model_max_length, positions, said.get("max_seq_length"))))
        encoder.tokenizer.model_max_length = limit  # where it truncates
        encoder = replace(encoder, pooling=on.pop())
        apart, together = (embed(encoder, texts) for texts in (["a"], ["a", "a b " * min(limit, 512)]))
        if not abs(apart[0] - together[0]).max() < 1e-3:
            raise ValueError("a sentence has another embedding beside a longer one")
    return encoder

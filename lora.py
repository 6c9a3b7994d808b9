"""LoRA, the only weights that are trained, and the switch that turns them off.

    y = W x + (alpha / r) B A x        W frozen (d_out, d_in), A (r, d_in), B (d_out, r)

B starts at zero, so nothing changes at first. With the adapter off the model is exactly the base model: training the
confidence cannot change the answers. By default the base model reads question and answer, and the adapter is on from
the confidence turn on (an "activated LoRA"): one cached pass without gradients serves rollouts, update and reference.
With `--adapter everywhere` it reads them too. Files are as peft's; `alora_invocation_tokens` switch the adapter on.

Sources: LoRA, arXiv 2106.09685; activated, arXiv 2504.12397. Left out: biases, and the embedding with its tied head.

From infra: files.write_whole, models (layers).
"""

import contextlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import nn
from transformers.pytorch_utils import Conv1D

from infra.files import write_whole
from infra.models import linear_maps, taken_for_experts


class LoRA(nn.Module):
    """A frozen nn.Linear or GPT-2 Conv1D with a low-rank update."""

    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__()
        d_out, d_in = base.weight.shape[::-1] if isinstance(base, Conv1D) else base.weight.shape
        self.base, self.scale, self.on, self.dropout = base, alpha / rank, True, dropout
        kwargs = dict(device=base.weight.device, dtype=torch.float32)  # master weights stay in float32 under AMP
        self.A = nn.Parameter(torch.randn(rank, d_in, **kwargs) * d_in**-0.5)
        self.B = nn.Parameter(torch.zeros(d_out, rank, **kwargs))

    weight, bias = (property(lambda self, name=name: getattr(self.base, name)) for name in ("weight", "bias"))

    def forward(self, x):  # (..., d_in) -> (..., d_out)
        y = self.base(x)
        if self.on:
            # only where gradients are on: rollouts and old log-probabilities use the whole adapter
            x = F.dropout(x.to(self.A.dtype), self.dropout, training=torch.is_grad_enabled())
            y = y + self.scale * F.linear(F.linear(x, self.A), self.B).to(y.dtype)
        return y


def add_lora(lm, rank=16, alpha=32, seed=0, dropout=0.0):
    """Put a LoRA on every linear map but the output head. -> list of trainable parameters"""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in linear_maps(lm.model):
            lm.model.set_submodule(name, LoRA(module, rank, alpha, dropout))
    return [p for p in lm.model.parameters() if p.requires_grad]


def _loras(lm):
    return {name: module for name, module in lm.model.named_modules() if isinstance(module, LoRA)}


@contextlib.contextmanager
def adapter(lm, on):
    """Switch the adapter on or off inside a `with` block."""
    loras = list(_loras(lm).values())
    before = [module.on for module in loras]
    try:
        for module in loras:
            module.on = on
        yield
    finally:
        for module, state in zip(loras, before, strict=True):
            module.on = state


@torch.no_grad()
def merge(lm):
    """Add the update to the frozen weights, in place: W + (alpha / r) B A. What is left is an ordinary model."""
    for module in _loras(lm).values():
        update = module.scale * module.B @ module.A  # (d_out, d_in)
        module.base.weight += (update.T if isinstance(module.base, Conv1D) else update).to(module.base.weight.dtype)
    remove(lm)


def remove(lm):
    """Take the LoRA off again."""
    for name, module in _loras(lm).items():
        lm.model.set_submodule(name, module.base)


def save_adapter(lm, folder, invocation=None):
    """Write adapter_config.json and adapter_model.safetensors as peft does. invocation: the token ids from whose last
    occurrence on the adapter is on; None: on everywhere."""
    loras, folder = _loras(lm), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(loras.values()))
    rank, misnamed = first.A.shape[0], taken_for_experts(lm.model, loras)  # which peft loads as parameters
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": lm.name,
        "r": rank, "lora_alpha": first.scale * rank, "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
        "target_modules": sorted(loras.keys() - misnamed), "fan_in_fan_out": isinstance(first.base, Conv1D),
        "target_parameters": [f"{n}.weight" for n in misnamed] or None, "alora_invocation_tokens": invocation,
    }  # fmt: skip
    tensors = {f"base_model.model.{name}.lora_{part}.weight": getattr(module, part).detach().cpu().contiguous()
               for name, module in loras.items() for part in "AB"}  # fmt: skip
    write_whole(folder / "adapter_config.json", [json.dumps(config, indent=2).encode()])
    write_whole(folder / "adapter_model.safetensors", [save(tensors)])


def load_adapter(lm, folder):
    """Add the adapter that `save_adapter` wrote; raises ValueError if it belongs to another model."""
    folder = Path(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors", device=str(lm.device))
    if not _loras(lm):
        add_lora(lm, config["r"], config["lora_alpha"])
    for name, module in _loras(lm).items():
        module.scale = config["lora_alpha"] / config["r"]
        for part in "AB":
            value = tensors.pop(f"base_model.model.{name}.lora_{part}.weight", None)
            parameter = getattr(module, part)
            if value is None or value.shape != parameter.shape:
                raise ValueError(f"the adapter in {folder} does not fit {lm.name}: layer {name}")
            parameter.data.copy_(value)
    if tensors:
        raise ValueError(f"the adapter in {folder} does not fit {lm.name}: no layer for {next(iter(tensors))}")

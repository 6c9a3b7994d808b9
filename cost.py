"""What the method costs: tokens and floating-point operations, counted where the model is called.

    forward  = 2 P T + 4 L a S + 2 d V K
    backward = 2 P T + 8 L a S + 2 d V K            through frozen weights, which get no gradient of their own

T tokens, of which S = sum (position + 1) pairs of a token and what it sees, and K logits; P weights in the linear maps
of the L blocks, a = heads x head size, d the width of the output head and V its vocabulary. Where the adapter is on,
its r (d_in + d_out) weights a map count with P, and twice in the backward pass, as they do get a gradient.
Recomputation repeats the forward pass. Padding and masked pairs do not count, so the speed that comes from it is the
useful one: its share of a matrix product's is the model FLOPs utilisation (MFU), with
recomputation the hardware's (HFU).

Source: the rule of 2 operations a weight and token, Kaplan et al. 2020, arXiv 2001.08361, with attention and the head
written out. Left out: norms, activations and softmax (below 1%), sliding windows (counted as if every token saw all
before it), and mixtures of experts (whose experts are not counted).
"""

import time
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora import LoRA


@dataclass(frozen=True)
class Size:
    """What the cost of a model depends on."""

    weights: int  # P
    attention: int  # L a
    head: int  # d V, 0 for an encoder
    adapter: int = 0  # sum of r (d_in + d_out), 0 while it is off

    @classmethod
    def of(cls, model):
        config, head = model.config.get_text_config(), model.get_output_embeddings()
        maps = [m.weight for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        loras = [m for m in model.modules() if isinstance(m, LoRA) and m.on]
        return cls(
            sum(w.numel() for w in maps), config.num_hidden_layers * config.num_attention_heads * width,
            0 if head is None else head.weight.numel(), sum(m.A.numel() + m.B.numel() for m in loras),
        )  # fmt: skip


@dataclass
class Work:
    """Counters: tokens read, logits computed, floating-point operations. `take` reads and clears them."""

    tokens: int = 0
    logits: int = 0
    flops: int = 0

    def forward(self, size, tokens, pairs, logits=0):
        self.tokens += tokens
        self.logits += logits
        self.flops += 2 * (size.weights + size.adapter) * tokens + 4 * size.attention * pairs + 2 * size.head * logits

    def backward(self, size, tokens, pairs, logits=0):
        self.flops += 2 * (size.weights + 2 * size.adapter) * tokens + 8 * size.attention * pairs
        self.flops += 2 * size.head * logits

    def take(self):
        found = dict(tokens=self.tokens, logits=self.logits, flops=self.flops)
        self.tokens = self.logits = self.flops = 0
        return found


def matmul_flops(device="cpu", dtype=torch.float32, size=None, seconds=0.5):
    """FLOP/s of a plain matrix product, the best of as many as fit into `seconds`: the speed to compare with."""
    size = size or (2048 if torch.device(device).type == "cpu" else 8192)  # a GPU is done with a small one too soon
    a = torch.randn(size, size, device=device, dtype=dtype)
    best, stop = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < stop or best == float("inf"):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best

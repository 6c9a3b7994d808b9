"""The optimiser: AdamW in mixed precision.

Weights, gradients and moments stay in float32, and the arithmetic runs in half precision where that is fast:

    scale -> backward -> unscale -> clip -> step -> update

A gradient that is not finite changes nothing: the step is skipped and counted. `save` and `load` make a checkpoint from
which training goes on as if it had not stopped.

Source: Micikevicius et al. 2018, arXiv 1710.03740. bf16 needs no scale, and a CPU none of it: half precision was
hundreds of times slower there.
"""

import hashlib
import json

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

import parallel


def amp_dtype(amp, device):
    """"auto|off|bf16|fp16" -> torch dtype or None. auto: off on a CPU, bf16 on a GPU that has it, else fp16."""
    if amp == "auto":
        amp = "off" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


class Optimizer:
    """AdamW under AMP: master weights in float32; scale -> backward -> unscale -> clip -> step -> update."""

    def __init__(self, lm, config, total_steps):
        self.params = [p for p in lm.model.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.params, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)
        # ten steps up, then straight down to zero
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.adam, lambda step: min((step + 1) / 10, 1 - step / max(total_steps, 1))
        )
        self.device, self.dtype = lm.device.type, amp_dtype(config.amp, lm.device)
        # fp16 gradients of a small loss underflow unless the loss is scaled up; bf16 has the range of fp32
        self.scaler = torch.amp.GradScaler(self.device, init_scale=2.0**10, enabled=self.dtype == torch.float16)
        self.max_grad_norm = config.max_grad_norm
        self.skipped = 0  # steps in a row

    def autocast(self):
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None)

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def step(self):
        """Clip, update, and return the gradient norm before clipping. A gradient that is not finite skips the step."""
        parallel.add_gradients(self.params)
        self.scaler.unscale_(self.adam)
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.max_grad_norm)
        finite = bool(norm.isfinite())
        if finite or self.scaler.is_enabled():  # the scaler sees it too, and lowers the scale
            self.scaler.step(self.adam)
        self.scaler.update()
        self.adam.zero_grad()
        if finite:
            self.schedule.step()
        self.skipped = 0 if finite else self.skipped + 1
        return float(norm)

    def save(self, done, log):
        """All that the next step depends on, the weights too, after `done` steps, and their log. -> bytes of a file"""
        adam = self.adam.state_dict()
        tensors = {f"{i}": p.detach().contiguous() for i, p in enumerate(self.params)}
        tensors |= {f"{i}.{name}": value for i, of in adam["state"].items() for name, value in of.items()}
        numbers = {"done": done, "log": log, "groups": adam["param_groups"], "schedule": self.schedule.state_dict(),
                   "scaler": self.scaler.state_dict(), "skipped": self.skipped}  # fmt: skip
        numbers = json.dumps(numbers)
        return save(tensors, metadata={"numbers": numbers, "digest": _digest(numbers, tensors)})

    def load(self, path):
        """Go on from what was saved. -> how many steps are done, and their log. Raises ValueError for another file."""
        try:
            with safe_open(path, "pt") as file:
                metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
            if _digest(metadata["numbers"], tensors) != metadata["digest"]:
                raise ValueError("altered")
            numbers, state = json.loads(metadata["numbers"]), {}
            for name, tensor in tensors.items():
                i, _, of = name.partition(".")
                if of:
                    state.setdefault(int(i), {})[of] = tensor
                else:
                    self.params[int(i)].data.copy_(tensor)
            self.adam.load_state_dict({"state": state, "param_groups": numbers["groups"]})
            self.schedule.load_state_dict(numbers["schedule"])
            self.scaler.load_state_dict(numbers["scaler"])
            self.skipped = numbers["skipped"]
            return numbers["done"], numbers["log"]
        except (SafetensorError, ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"{path} is damaged: delete it, and training begins again ({error})") from None


def _digest(numbers, tensors):
    digest = hashlib.sha256(numbers.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].cpu().numpy().tobytes())
    return digest.hexdigest()

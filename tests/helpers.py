"""What several test files share: a tiny world, and plain reimplementations."""

import torch

import statements
from amp import Optimizer
from lora import adapter
from rl import update

SUBJECTS = ["Zorva", "Kelo", "Mira", "Tavu"]
ASKED = [("banner of Zorva", "red"), ("river of Kelo", "blue"), ("crown of Mira", "ruby"), ("temple of Tavu", "x y")]


def roll(lm, prompt, pairs, group, temperature, seeds, reasoning=0):
    asked = statements.ask(lm, prompt, pairs, reasoning > 0)
    return statements.rollout(lm, prompt, asked, group, temperature, seeds, reasoning)


def randomise(parameters, seed=1, scale=0.4):
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.data.copy_(scale * torch.randn(p.shape, generator=generator))


class Recorder(Optimizer):
    """Steps, and keeps the gradients as they were before clipping."""

    def step(self):
        self.gradients = [p.grad.detach().clone() for p in self.params]
        return super().step()


def gradient_of(lm, batch, advantages, config):
    """One flat vector; the parameters move."""
    optimizer = Recorder(lm, config, 100)
    stats = update(lm, batch, advantages, config, optimizer)
    return torch.cat([g.flatten() for g in optimizer.gradients]), stats


def plain_logits(lm, prompt, completion):
    """The base model reads the prompt, the adapter is on for the completion. -> (1 + T, V), the next tokens' logits"""
    with torch.no_grad(), adapter(lm, False):
        read = lm.model(input_ids=torch.tensor([prompt]), use_cache=True)
    rest = [read.logits[0, -1:]]
    if completion:
        rest.append(lm.model(input_ids=torch.tensor([completion]), past_key_values=read.past_key_values).logits[0])
    return torch.cat(rest)


def plain_logp(lm, prompt, completion, temperature):
    logp = (plain_logits(lm, prompt, completion) / temperature).log_softmax(-1)
    return torch.stack([logp[i, t] for i, t in enumerate(completion)])

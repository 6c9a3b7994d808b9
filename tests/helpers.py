"""What several test files share: a tiny world, and plain reimplementations."""

import functools
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import rl
import settings
from infra import sharing
from lora import adapter

Config = functools.partial(settings.Config, kl=0.0)
SUBJECTS = ["Zorva", "Kelo", "Mira", "Tavu"]
ASKED = [("banner of Zorva", "red"), ("river of Kelo", "blue"), ("crown of Mira", "ruby"), ("temple of Tavu", "x y")]


def shared(lm):
    """The same model with the engine that shares tokens, whatever the length."""
    return replace(lm, sharing=sharing, longest_shared=10**9)


def roll(lm, prompt, pairs, group, temperature, seeds):
    """-> rl.Asked, lists of rl.Rollouts"""
    asked = rl.second_turns(lm, prompt, pairs, Config())
    return asked, rl.rollout(lm, prompt, asked, group, temperature, seeds)


def randomise(parameters, seed=1, scale=0.4):
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.data.copy_(scale * torch.randn(p.shape, generator=generator))


class Recorder(rl.Optimizer):
    """Steps, and keeps the gradients as they were before clipping."""

    def step(self):
        self.gradients = [p.grad.detach().clone() for p in self.params]
        return super().step()


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


# ---- runs of the command line -----------------------------------------------------------------

SMALL = [
    "--platt-questions", "6", "--train-questions", "10", "--test-questions", "8", "--samples", "3", "--rank", "2",
    "--answer-tokens", "6", "--sample-batch", "8", "--steps", "3", "--questions", "4", "--rollouts", "3",
    "--resamples", "20", "--lr", "1e-2", "--reflection", "4",
]  # fmt: skip


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, found):
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def one_sentence(captured):
    """The one line on stderr, without the word `error`; progress bars and notes are no errors."""
    (line,) = [x for x in captured.err.replace("\r", "\n").split("\n") if x.startswith("error:")]
    assert captured.err.endswith(f"{line}\n") and "Traceback" not in captured.err
    return line.removeprefix("error: ")


def assert_close(one, other, where=""):
    """JSON values that are equal but for rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_close(one[name], other[name], f"{where} {name}")
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where} {i}")
    elif isinstance(one, float) or isinstance(other, float):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5), where
    else:
        assert one == other, where


def weights(run):
    """The adapter of a run, and what its training has made of the matrices that are zero before it: two vectors."""
    found = load_file(run / "adapter" / "adapter_model.safetensors")
    return [torch.cat([found[n].flatten() for n in sorted(found) if part in n]) for part in ("lora", "lora_B")]


def distance(run, other):
    """How far apart two adapters are, as a share of what training has made of the second one."""
    (mine, _), (theirs, learned) = weights(run), weights(other)
    return float((mine - theirs).norm() / learned.norm())

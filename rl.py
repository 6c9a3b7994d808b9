"""Stage 3: reinforcement learning that aligns the confidence a model *states* with a calibrated target.

    r_i = 1 - max(tolerance, |c_i - p|)                        reward of one rollout
    A_i = r_i - mean of the other rewards of its group         advantage ("loo": leave-one-out baseline, RLOO)
    L   = -1/M sum_i sum_t min(ratio A_i, clip(ratio, 1 - eps, 1 + eps) A_i)      PPO's clipped objective
    ratio = π(token) / π_old(token)

c_i is the stated confidence of rollout i, p the target of its question, M the number of rollouts of a step, however it
is split. There is one update per batch of rollouts: without dropout the ratio is 1 in value, the clip never acts, and L
has the gradient of REINFORCE. A rollout reflects first: its tokens get the advantage of the number that they lead to.

GRPO as published (arXiv 2402.03300) divides the advantage by the group's standard deviation ("zscore"), averages over a
rollout's tokens, and adds a k3 divergence. Here the advantage has the reward's scale, tokens are summed, and k2 added.

Sources: REINFORCE, Williams 1992; PPO, arXiv 1707.06347; RLOO, arXiv 2402.14740; mixed precision, arXiv 1710.03740.
Left out: a value network, as the group is the baseline, and a reward on the answer, which is frozen text.

From infra: parallel (shares and sums of processes), loop (resuming, micro-batches, the log), models.amp_dtype.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from infra import parallel
from infra.loop import Loop, measures, micro_batches
from infra.models import amp_dtype
from lm import Read, read, read_on, seed_of, stop_ids
from lora import adapter

NUMBER_TOKENS = 6  # the longest statement

# ---- reward, advantage, loss ------------------------------------------------------------------------------------


def calibration_reward(confidence, target, tolerance=0.05):
    """1 - max(tolerance, |c - p|), the paper's reward; None, no parseable number, earns 0.

    target: the calibrated probability. Inside the tolerance all is equally good. Raises ValueError outside [0, 1].
    """
    if not 0 <= target <= 1 or confidence is not None and not 0 <= confidence <= 1:
        raise ValueError(f"confidence and target must be in [0, 1], not {confidence} and {target}")
    return 0.0 if confidence is None else 1.0 - max(tolerance, abs(confidence - target))


def group_advantages(rewards, kind="loo"):
    """Advantages inside each group of rollouts of one question. (Q, G) -> (Q, G) float64, rewards unchanged.

    "loo": r_i - mean of the others; "center": r_i - mean; "zscore": (r_i - mean) / (std + 1e-6), GRPO's.
    A group whose rewards are all equal gets exactly 0. Raises ValueError for another kind, shape, and for nan and inf.
    """
    r = np.asarray(rewards, dtype=np.float64)
    if r.ndim != 2 or 0 in r.shape or not np.isfinite(r).all():
        raise ValueError("rewards must be finite, of shape (Q, G)")
    centered = r - r.mean(axis=1, keepdims=True)
    if kind == "loo":  # r_i - (sum - r_i) / (G - 1) = (r_i - mean) G / (G - 1)
        found = centered * r.shape[1] / max(r.shape[1] - 1, 1)
    elif kind == "zscore":
        found = centered / (r.std(axis=1, keepdims=True) + 1e-6)
    elif kind == "center":
        found = centered
    else:
        raise ValueError(f"unknown kind of advantage {kind!r}: choose loo, center or zscore")
    # rounding in the mean must not become a signal where there is none
    return np.where(r.max(axis=1, keepdims=True) == r.min(axis=1, keepdims=True), 0.0, found)


def policy_loss(logp, old_logp, advantages, mask, clip=0.2, normaliser=None):
    """PPO's clipped policy-gradient loss. (B, T), (B, T), (B,), (B, T) -> scalar, stats.

    old_logp: under the policy that sampled, without gradient. normaliser: what the sum over tokens is divided by, or B;
    give the size of the whole step when B is a micro-batch. stats: clip_fraction, the share of tokens whose ratio left
    [1 - clip, 1 + clip]; approx_kl, the mean over tokens of old_logp - logp, in nats.
    """
    log_ratio = (logp - old_logp) * mask
    ratio = log_ratio.exp()
    advantage = advantages.to(ratio.dtype)[:, None]
    # the minimum for both signs of the advantage: the pessimistic side of the trust region
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    outside, tokens = ((ratio - 1).abs() > clip) * mask, mask.sum().clamp_min(1)
    stats = {"clip_fraction": float(outside.sum() / tokens), "approx_kl": float(-log_ratio.detach().sum() / tokens)}
    return -(objective * mask).sum() / (normaliser or len(logp)), stats


def kl_to_reference(logp, ref_logp, mask):
    """Low-variance estimate of KL(policy || reference), k2 = (logp - ref)²/2, (B, T) x 3 -> sum over tokens.

    As a loss on fresh samples, each token's k2 has the expected gradient of that token's KL(policy || reference) given
    the tokens before it; k1's is zero, and k3's is that of KL(reference || policy). Schulman, "Approximating KL
    Divergence", 2020.
    """
    return (0.5 * (logp - ref_logp) ** 2 * mask).sum()


# ---- rollouts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """R prompts, up to the point where the model is to reflect or to state its confidence."""

    prompts: list  # R lists of token ids, with the turn that asks for the confidence
    frozen: Read | None  # what the base model has read of them, all but that turn; None: the adapter reads everything
    whose: list  # R: the row of `frozen` that each prompt goes on from

    def read(self, lm, rows):
        """Read what is not frozen of some prompts, with the adapter as it is and gradients if they are on. -> Read"""
        prompts, whose = [self.prompts[r] for r in rows], [self.whose[r] for r in rows]
        return read(lm, prompts) if self.frozen is None else read_on(lm, self.frozen, whose, prompts)

    def after(self, rollouts):
        """The prompts with the reflections of each, up to where the number comes next. -> Asked"""
        every = [(self.prompts[q] + r.reflection + r.forced, self.whose[q]) for q, g in enumerate(rollouts) for r in g]
        return Asked([prompt for prompt, _ in every], self.frozen, [row for _, row in every])


def second_turns(lm, prompt, pairs, config):
    """Q pairs of a question and its answer, and what else prompt.second_turn takes -> Asked, the contexts are read"""
    contexts, turns = zip(*(prompt.second_turn(*pair) for pair in pairs), strict=True)
    prompts, whose = [context + turn for context, turn in zip(contexts, turns, strict=True)], list(range(len(pairs)))
    if config.adapter == "everywhere":
        return Asked(prompts, None, whose)
    with torch.no_grad(), adapter(lm, False):
        return Asked(prompts, read(lm, list(contexts)), whose)


def think(lm, now, temperatures, tokens, seeds, force, blank=frozenset()):
    """Let each completion think to the end of its line. force: the last token of a thought -> what is forced after it.
    -> Read of all that, a row for each completion; the thoughts; what was forced (token ids)"""
    drawn = lm.engine(tokens).sample(lm, now, temperatures, tokens, stop_ids(lm, "\n"), seeds, blank=blank)
    whose, thoughts = [q for q, group in enumerate(drawn) for _ in group], sum(drawn, [])
    forced = [*map(functools.cache(force), (t[-1] for t in thoughts))]
    prompts = [now.prompts[q] + t + f for q, t, f in zip(whose, thoughts, forced, strict=True)]
    return read_on(lm, now, whose, prompts), thoughts, forced


class Rollout(NamedTuple):
    """What the model said about one answer, as token ids, and the confidence that it stated."""

    reflection: list  # empty where there is none
    forced: list  # after it; the model did not choose this
    number: list
    confidence: float | None  # in [0, 1]

    @property
    def tokens(self):
        return self.reflection + self.forced + self.number

    @property
    def actions(self):
        """1: the token was sampled, 0: it was forced."""
        return [1] * len(self.reflection) + [0] * len(self.forced) + [1] * len(self.number)


@torch.no_grad()
def rollout(lm, prompt, asked, group, temperature, seeds):
    """Let the model reflect and state its confidence in each of Q answers, G times. -> Q lists of G Rollouts

    A reflection ends with its line, or is cut; then the label of the number is forced. So what a reflection says can
    never be taken for the number. Questions are processed in chunks whose caches and logits fit.
    """
    statement, longest = prompt.statement, max(map(len, asked.prompts)) + prompt.reflection + 2 * NUMBER_TOKENS
    at_once = max(1, lm.rows(longest) // (group if prompt.reflection else 1))
    label, stop, found = functools.partial(prompt.forced, label=statement.label), stop_ids(lm, statement.stop), []
    sample = functools.partial(lm.engine(NUMBER_TOKENS).sample, max_new_tokens=NUMBER_TOKENS, stop=stop)
    for start in range(0, len(asked.prompts), at_once):
        rows = range(start, min(start + at_once, len(asked.prompts)))
        now, own, each = asked.read(lm, rows), [seed_of(seeds[q], "number") for q in rows], [temperature] * group
        if prompt.reflection:  # each reflection is then a prompt of its own, with one number
            now, reflections, forced = think(lm, now, each, prompt.reflection, [seeds[q] for q in rows], label)
            numbers = sample(lm, now, [temperature], seeds=[seed_of(seed, g) for seed in own for g in range(group)])
        else:
            numbers, reflections = sample(lm, now, each, seeds=own), [[]] * (len(rows) * group)
            forced = reflections
        numbers = sum(numbers, [])  # question by question
        # special tokens are decoded too, so that one inside a number makes it malformed; the eos that ends it is not
        texts = [lm.tokenizer.decode(x[:-1] if x[-1] in stop_ids(lm, "") else x) for x in numbers]
        stated = [statement.read(statement.label + text) for text in texts]
        found += [Rollout(*one) for one in zip(reflections, forced, numbers, stated, strict=True)]
    return [found[i : i + group] for i in range(0, len(found), group)]


# ---- the loop ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One training question with the model's own answer, which is frozen."""

    question: str
    answer: str
    target: float  # calibrated probability that the answer is correct
    correct: int  # is it?
    thought: str = ""  # before the answer
    probability: float | None = None  # geometric mean of its tokens' probabilities: beyond/tell.py


class Optimizer:
    """AdamW in mixed precision: scale -> backward -> unscale -> clip -> step -> update.

    What is trained, its gradients and moments are float32; the arithmetic, and on a GPU the frozen weights, are half
    precision. A gradient that is not finite changes nothing: the step is skipped and counted.
    """

    def __init__(self, lm, config):
        self.params = [p for p in lm.model.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(self.params, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)
        total = config.warmup + config.steps  # the learning rate rises for ten steps, then falls linearly to zero
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, lambda i: min((i + 1) / 10, 1 - i / max(total, 1)))
        self.device, self.dtype = lm.device.type, amp_dtype(config.amp, lm.device)
        # fp16 gradients of a small loss underflow unless the loss is scaled up; bf16 has the range of fp32
        self.scaler = torch.amp.GradScaler(self.device, init_scale=2.0**10, enabled=self.dtype == torch.float16)
        self.max_grad_norm, self.skipped = config.max_grad_norm, 0  # steps in a row

    def autocast(self):
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None)

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def step(self):
        """Clip, update, and return the gradient norm before clipping."""
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


def scorer(lm, tokens, config):
    """What reads and scores completions of up to so many tokens; with --recompute it keeps no activations."""

    def score(asked, rows, completions, temperature):
        return lm.engine(tokens).completion_logprobs(lm, asked.read(lm, rows), completions, temperature)

    return functools.partial(checkpoint, score, use_reentrant=False) if config.recompute == "on" else score


def train(lm, prompt, items, config, reward, on_step, saved=None, instead=None):
    """Stage 3: REINFORCE with a group baseline on the confidence turn.

    lm: with a LoRA. items: of class Item. reward: (confidence or None, Item) -> float. config: settings.Config.
    on_step(dict): called with the metrics of every step. saved: path of a checkpoint, to go on from if it is there and
    to be kept up to date. instead: (step) -> a function that does the step in another way, or None (beyond/exact.py).
    """
    optimizer, total = Optimizer(lm, config), config.rollouts * min(config.questions, len(items))
    loop = Loop(optimizer, config, saved, on_step)
    for step in loop:  # the supervised steps of --warmup have negative numbers
        # questions: with the model's own answers, which the base model reads
        chosen = loop.choose(items)
        torch.manual_seed(seed_of(config.seed, "dropout", step))
        mine = parallel.share(list(enumerate(chosen)))
        with optimizer.autocast():
            pairs = [(x.question, x.answer, x.thought, x.probability) for _, x in mine]
            asked = second_turns(lm, prompt, pairs, config)
        seeds, temperature = [seed_of(config.seed, "rollout", step, i) for i, _ in mine], config.rollout_temperature
        if other := instead and instead(step):
            loop.record(**other(lm, prompt, asked, chosen, seeds, optimizer))
            continue
        # rollouts: G reflections and numbers for each
        with optimizer.autocast():
            batch = rollout(lm, prompt, asked, config.rollouts, temperature, seeds)
        # rewards, advantages
        rewards = [[reward(r.confidence, x) for r in group] for group, (_, x) in zip(batch, mine, strict=True)]
        advantages = group_advantages(rewards, config.advantage)  # (Q, G)
        # log-probabilities, loss, gradient, step
        tokens, sums = [[r.tokens for r in group] for group in batch], {"loss": 0.0, "kl": 0.0}
        score = scorer(lm, max(map(len, sum(tokens, []))), config)
        few = 0 if asked.frozen else 4  # questions: prompts that are read with gradients hold activations too
        for part in micro_batches(tokens, lm.chunk, config.micro_batch or few):
            rows, places = [q for q, _ in part], [(q, g) for q, some in part for g in some]  # B of these
            said = [[tokens[q][g] for g in some] for q, some in part]
            with optimizer.autocast():
                logp, mask = score(asked, rows, said, temperature)  # (B, T)
                with torch.no_grad():  # without dropout, as when it was sampled
                    old = score(asked, rows, said, temperature)[0] if config.dropout else logp.detach()
            actions = [batch[q][g].actions for q, g in places]
            actions = torch.tensor([a + [0] * (mask.shape[1] - len(a)) for a in actions], device=lm.device)  # (B, T)
            advantage = torch.tensor([advantages[place] for place in places], device=lm.device)  # (B,)
            loss, _ = policy_loss(logp, old, advantage, actions, normaliser=total)
            if config.kl:
                with torch.no_grad(), adapter(lm, False), optimizer.autocast():
                    reference, _ = score(asked, rows, said, temperature)
                divergence = kl_to_reference(logp, reference, actions) / total
                loss, sums["kl"] = loss + config.kl * divergence, sums["kl"] + divergence.item()
            optimizer.backward(loss)
            sums["loss"] += loss.item()
        norm = optimizer.step()
        loop.record(**measures(rewards, batch, chosen), grad_norm=norm, **parallel.totals(**sums))

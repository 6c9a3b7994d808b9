"""All that can be stated, with its probability: the exact gradient, the expected readout, the supervised warm-up.

Without reasoning there are only 101 whole percentages to state, each with the probability

    π(c) = P(" c%" | question, answer)                           for c in 0, 1, ..., 100
    J    = Σ_c π(c) r(c)                                         expected reward, whose gradient REINFORCE estimates
    E[c] = Σ_c c π(c) / Σ_c π(c)                                 expected confidence, a finer readout

They are scored as a tree of digits on the question that was read once (infra/sharing.py), with gradients. What is no
whole percentage with its sign, as " 9.5%", " 2018" or " 75-76", has no part in these sums and earns nothing.
"""

import functools
from dataclasses import replace

import torch

from infra import parallel
from infra.loop import correlation
from lora import adapter
from rl import scorer

# ---- all percentages --------------------------------------------------------------------------------------------


def percentages(lm, every=1):
    """Each `every`-th percentage, as far as the tokenizer can write it. -> {percent: token ids}"""
    found = {percent: lm.proceed(f" {percent}%") for percent in range(0, 101, every)}
    return {percent: ids for percent, ids in found.items() if written(lm, ids, f"{percent}%")}


def written(lm, ids, text):
    return lm.decode(ids).strip() == text  # some tokenizers drop the first blank when they decode


def log_policy(lm, asked, rows, said, config):
    """log π(c) of some of the questions and each percentage of `said`. -> (R, C), with gradient"""
    score = scorer(lm, max(map(len, said.values())), config)
    logp, _ = score(asked, rows, [list(said.values()) for _ in rows], config.rollout_temperature)
    return logp.sum(-1).view(-1, len(said))


def expected_confidence(chance, said):
    """Mean of what would be stated, given that it is one of `said`, and the chance of that. (Q, C) -> (Q,), (Q,)"""
    percent = torch.tensor(list(said), dtype=chance.dtype, device=chance.device)
    return (chance * percent).sum(-1) / chance.sum(-1).clamp_min(1e-12) / 100, chance.sum(-1)


def expect(lm, asked, config):
    """The expected confidence in each answer, at temperature 1; None if P(no percentage) > 1/2."""
    rows, said = list(range(len(asked.prompts))), percentages(lm)
    if not said:
        return [None] * len(rows)
    logp = log_policy(lm, asked, rows, said, replace(config, rollout_temperature=1.0))
    mean, number = expected_confidence(logp.exp(), said)
    return [c if p >= 0.5 else None for c, p in zip(mean.tolist(), number.tolist(), strict=True)]


def divergence(logp, reference):
    """KL(policy || reference) over the percentages and, as one more outcome, all else. (Q, C) x 2 -> (Q,), in nats"""
    rest, other = ((1 - x.exp().sum(-1)).clamp_min(1e-6) for x in (logp, reference))  # (Q,) each
    return (logp.exp() * (logp - reference)).sum(-1) + rest * (rest / other).log()


# ---- other steps of training ------------------------------------------------------------------------------------


def instead(lm, config, reward):
    """What rl.train is to do instead of a step from rollouts. -> (step) -> (lm, asked, chosen, optimizer) -> metrics

    Raises ValueError for a tokenizer that cannot write percentages, if the exact gradient needs them.
    """
    later = None
    if config.gradient == "exact":
        said = percentages(lm, config.every)
        if not said:
            raise ValueError("the exact gradient needs a tokenizer that can write percentages")
        later = functools.partial(exact_step, said=said, reward=reward, config=config)
    warm_up = functools.partial(supervised_step, config=config)
    return lambda step: warm_up if step < 0 else later


def supervised_step(lm, asked, chosen, optimizer, config):
    """Raise log π(" 75%") for a target of 0.73. -> what is logged

    Multiples of five: people say round numbers, and so does the text that models are trained on.
    """
    texts = [lm.proceed(f" {5 * round(20 * x.target)}%") for x in chosen]
    mine = parallel.share(texts)
    with optimizer.autocast():
        score = scorer(lm, max(map(len, texts)), config)
        logp, mask = score(asked, list(range(len(mine))), [[text] for text in mine], 1.0)
    loss = -(logp * mask).sum() / sum(map(len, texts))
    optimizer.backward(loss)
    return {**parallel.totals(supervised_loss=loss.item()), "grad_norm": optimizer.step()}


def update(lm, asked, rewards, said, config, optimizer):
    """One optimiser step on the expected reward. rewards (Q, C) of this process -> stats, log π (Q, C)"""
    size, found, sums = parallel.totals(size=len(rewards))["size"], [], {"loss": 0.0, "kl": 0.0}
    tree = lm.engine(max(map(len, said.values()))) is lm.sharing  # of digits: at most half of the tokens
    at_once = config.micro_batch or max(1, lm.chunk * (1 + tree) // sum(map(len, said.values())))
    for start in range(0, len(rewards), at_once):
        rows = list(range(len(rewards)))[start : start + at_once]
        with optimizer.autocast():
            logp = log_policy(lm, asked, rows, said, config)  # (R, C)
        loss = -(logp.exp() * rewards[rows]).sum() / size
        if config.kl:
            with torch.no_grad(), adapter(lm, False), optimizer.autocast():
                reference = log_policy(lm, asked, rows, said, config)
            kl = divergence(logp, reference).sum() / size
            loss = loss + config.kl * kl
            sums["kl"] += kl.item()
        optimizer.backward(loss)
        sums["loss"] += loss.item()
        found.append(logp.detach())
    return {"grad_norm": optimizer.step(), **parallel.totals(**sums)}, torch.cat(found)


def exact_step(lm, asked, chosen, optimizer, said, reward, config):
    """All that can be stated, its rewards, update. -> what is logged

    `distinct` counts what is stated at least a hundredth as often as what is stated most often.
    """
    rewards = [[reward(c / 100, x) for c in said] for x in parallel.share(chosen)]
    stats, logp = update(lm, asked, torch.tensor(rewards, device=lm.device), said, config, optimizer)
    chance, rewards = (torch.tensor(parallel.gather(x)) for x in (logp.exp().tolist(), rewards))  # (Q, C), of all
    mean, number = expected_confidence(chance, said)
    often = chance.mean(0)  # (C,)
    return {
        "reward": (chance * rewards).sum(-1).mean().item(),
        "malformed": 1 - number.mean().item(),
        "mean_confidence": mean.mean().item(),
        "distinct": int((often >= 0.01 * often.max()).sum()),
        "correlation": correlation(list(zip(mean.tolist(), (x.target for x in chosen), strict=True))),
        "no_signal": (rewards.amax(1) == rewards.amin(1)).float().mean().item(),
        **stats,
        "tokens": 0,
    }

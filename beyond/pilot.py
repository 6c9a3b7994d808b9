"""Before a run is begun: does the model answer, will it state numbers, and which prompt suits it, chat or few-shot?

Where the tokenizer has a chat template, `--prompt auto` tries both on the same labelled questions, graded and embedded
as the run will do it, and takes the one whose entropy H tells right answers from wrong ones better:

    the higher AUROC of -H, H of a few samples, if the two differ by more than 1.96 standard errors of one that knows
    nothing; otherwise the higher accuracy; chat, if these are equal

Exact match stands for a judge and for labels of a file.
"""

import sys
from dataclasses import replace

import numpy as np
import torch

import entropy
import eval
import lm
import rl
import use
from beyond import exact
from infra import parallel, progress, setup
from infra.files import LABELLED, first
from infra.folder import PILOT, pilot_key
from infra.grading import grade

STATING = 10  # questions after which the probability of a number is measured


def held(config, run, model, prompt, questions, training):
    """Try labelled ones of (part, Question) pairs, and write nothing. -> the Prompt; what was found if it was a choice

    An interrupted run goes on with what it had found. Raises ValueError for a model that answers nothing.
    """
    if config.model == "toy":
        return prompt, {}
    both = config.prompt == "auto" and model.tokenizer.chat_template
    prompts = {style: replace(prompt, style=style) for style in (("chat", "fewshot") if both else (prompt.style,))}
    if both and kept(config, run).exists():
        found = run.read(kept(config, run).name)
        return prompts[found["prompt"]], found
    for one in prompts.values():
        setup.check_lengths(config, model, one, [q for _, q in questions])
    asked = [q for part, q in questions if part in LABELLED][: PILOT["questions"]]
    embedder = lm.load_embedder(config.embedder, model) if both else None
    tried = {style: tried_on(asked, config, model, one, embedder) for style, one in prompts.items()}
    # A model that answers nothing leaves nothing to grade or embed. One that states no number is not refused, because
    # untrained models begin so: a warm-up teaches them, and what needs no training needs no number.
    answering = {style: figures for style, (figures, _) in tried.items() if figures["answered"]}
    if not answering:
        raise ValueError(f"{config.model} answers nothing: all of its {len(asked)} answers are empty, with --prompt "
                         f"{' and '.join(prompts)}; try another model, or a larger --answer-tokens")  # fmt: skip
    best, said = choose(answering, len(asked)) if both else (prompt.style, "")
    if training and config.steps and not config.warmup:
        stated = chance_of_number(config, model, prompts[best], list(zip(asked, tried[best][1], strict=True))[:STATING])
        if stated * (rollouts := config.questions * config.rollouts) < 1 and first():
            print(f"warning: the untrained model states a number with probability {stated:.1g}, so that hardly one of "
                  f"the {rollouts} rollouts of a step earns a reward: try --warmup 20", file=sys.stderr)  # fmt: skip
    found = {"key": pilot_key(config), "prompt": best, "forms": answering, "said": said}
    (found, *_) = parallel.gather([found])  # the first process decides for all, whatever rounding does
    return prompts[found["prompt"]], found if both else {}


def kept(config, run):
    """The file that an interrupted run finds its choice in."""
    return run.unfinished("sample", config, f"pilot-{pilot_key(config)}.json")


def tried_on(questions, config, model, prompt, embedder=None):
    """Answer questions; with an embedder, also sample and grade. -> {figure: number}, a Reply to each question"""
    n, size, found = PILOT["samples"] if embedder else 0, config.sample_batch, []
    batches = [questions[i : i + size] for i in range(0, len(questions), size)]
    for batch in progress.Bar(parallel.share(batches), desc="pilot", unit="batch"):
        temperatures = [config.answer_temperature] + [config.temperature] * n
        seeds = [lm.seed_of(config.seed, "pilot", q.id) for q in batch]
        found.append(use.answers(model, prompt, [q.question for q in batch], temperatures, seeds, config))
    replies = sum(parallel.gather(found), [])
    figures = {"answered": sum(bool(answer.text) for answer, *_ in replies)}
    if embedder:
        grader = "contains" if config.grader == "contains" else "exact"
        right = [grade(r[0].text, q.answers, grader) for r, q in zip(replies, questions, strict=True)]
        embeddings = lm.embed(embedder, [s.text for _, *samples in replies for s in samples])
        gram = entropy.gram(embeddings.reshape(len(questions), n, -1), config.kernel, config.gamma)  # (N, n, n)
        sure = np.exp(-entropy.von_neumann(gram))  # (N,), in the order of -H
        figures |= {"auroc": eval.auroc(sure, right), "accuracy": float(np.mean(right))}
    return figures, [answer for answer, *_ in replies]


def choose(forms, n):
    """{style: figures}, of n questions -> the style to take; a sentence that says why"""
    auroc, accuracy = ([f[name] for f in forms.values()] for name in ("auroc", "accuracy"))
    # the variance of an AUROC that knows nothing, Mann and Whitney 1947
    noise = sum((n + 1) / (12 * n**2 * p * (1 - p)) if 0 < p < 1 else np.inf for p in accuracy) ** 0.5
    apart = len(forms) > 1 and abs(auroc[0] - auroc[1]) > 1.96 * noise
    best = max(forms, key=lambda style: (apart and forms[style]["auroc"], forms[style]["accuracy"], style == "chat"))
    each = [f"{style} AUROC of the entropy {f['auroc']:.2f}, accuracy {f['accuracy']:.0%}".replace("nan", "undefined")
            for style, f in sorted(forms.items(), key=lambda form: form[0] != best)]  # fmt: skip
    why = "AUROC decides" if apart else "accuracy decides, as AUROC differs by no more than chance"
    each += ["the other one answers nothing" if len(forms) == 1 else why]
    return best, f"prompt {best}, by a pilot of {n} labelled questions: {'; '.join(each)}"


@torch.no_grad()
def chance_of_number(config, model, prompt, pairs):
    """Mean probability that a number comes at once after pairs of Question and Reply, at the rollouts' temperature."""
    _, numbers = exact.numbers(model, prompt.statement)
    if not numbers:
        return 0.0
    pairs = [(q.question, r.text, r.thought, r.probability) for q, r in pairs]
    asked = rl.second_turns(model, replace(prompt, reflection=0), pairs, config)
    return exact.log_policy(model, asked, list(range(len(pairs))), numbers, config).exp().sum(-1).mean().item()

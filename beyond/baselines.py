"""What we compare with: confidences that cost no training.

From labels, for every method to beat: the base rate, their accuracy, which has a perfect ECE at the right level; the
family prior, that of the question's family, because recognising hard families looks good on a mixed test set.

From the samples that are there anyway, â the answer and s_1 ... s_n the samples:

    sequence probability   exp(log P(â | x) / tokens of â)
    self-consistency       share of the s_i that equal â                    Wang et al. 2022, arXiv 2203.11171
    semantic entropy       -sum_k q_k log q_k, q_k the share of the s_i in cluster k     Kuhn et al., 2302.09664

By reading each question again (READING): the confidence that the untrained model states, with and without examples, and
P(True), its probability that "True" comes next when it is asked about its answer (Kadavath et al., arXiv 2207.05221).

Left out: clusters by entailment, which need another model; ours are by the kernel.
"""

from dataclasses import replace

import numpy as np

from beyond import exact
from data import Statement
from infra.grading import grade

READING = ("stated", "zero-shot", "p-true")


def chosen(names):
    """Each of --baselines once: "stated,p-true" -> ["stated", "p-true"]. Raises ValueError for an unknown one."""
    found = [name.strip() for name in names.split(",") if name.strip()]
    for name in found:
        if name not in READING:
            raise ValueError(f"no baseline is called {name!r}; choose from {', '.join(READING)}")
    return list(dict.fromkeys(found))


def free(row, gram):
    """The scores that need nothing but a row of samples.jsonl, and the samples' Gram matrix. -> {name: float}"""
    return {
        "probability": float(np.exp(row["answer_logprob"] / row["answer_tokens"])),  # the answer's end included
        "consistency": self_consistency(row["answer"], row["samples"]),
        "clusters": cluster_entropy(gram),
    }


def without_examples(prompt):
    """Zero-shot; in chat form if there is one, because a bare label explains nothing."""
    return replace(prompt, examples=(), style="chat" if prompt.lm.tokenizer.chat_template else prompt.style)


def true_or_false(prompt):
    """The second turn asks whether the answer is true, at once."""
    statement = Truth("True or false:", "Is your answer true? Reply True or False.", "", 1, 0)
    return replace(prompt, statement=statement, reflection=0)


class Truth(Statement):
    def write(self, confidence):
        return str(confidence > 0.5)


def family_prior(labels, families, asked):
    """Each question gets the accuracy of its family on labelled questions; an unseen family gets the base rate.

    labels: M of 0 and 1, families: M, asked: the families of N questions -> N floats
    """
    of_family = {}
    for label, family in zip(labels, families, strict=True):
        of_family.setdefault(family, []).append(label)
    return [float(np.mean(of_family.get(family, labels))) for family in asked]


def self_consistency(answer, samples):
    """Share of the samples that would be right if the answer were the accepted one. -> in [0, 1]"""
    return float(np.mean([grade(s, [answer]) for s in samples]))


def cluster_entropy(gram):
    """Entropy of the clusters of n samples, in nats, from their Gram matrix (n, n).

    A sample joins the first cluster whose first member is like it, with a kernel above 1/2.
    """
    sizes = {}
    for i in range(len(gram)):
        first = next((j for j in sizes if gram[i, j] > 0.5), i)
        sizes[first] = sizes.get(first, 0) + 1
    share = np.array(list(sizes.values())) / len(gram)
    return float(-(share * np.log(share)).sum()) + 0.0  # no -0.0


def p_true(lm, asked, config):
    """P(True) against P(False), where the turn asks for one of them. -> Q floats, None if it cannot be written"""
    words = [lm.proceed(f" {text}") for text in ("True", "False")]
    if not all(exact.written(lm, ids, text) for ids, text in zip(words, ("True", "False"), strict=True)):
        return [None] * len(asked.prompts)
    logp = exact.log_policy(lm, asked, list(range(len(asked.prompts))), words, replace(config, rollout_temperature=1.0))
    return logp.softmax(-1)[:, 0].tolist()

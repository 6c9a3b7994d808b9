"""What we compare with: confidences that cost no training.

Constants, which every method has to beat: a constant confidence at the right level has a perfect ECE, and a student
that only recognises hard families looks good on a mixed test set.

    base rate      the accuracy on labelled questions
    family prior   the accuracy of the question's family there

From the samples that are there anyway, â the answer and s_1 ... s_n the samples (FREE):

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
from data import normalise
from infra.hints import nearest

FREE = ("probability", "consistency", "clusters")
READING = {  # name -> how it is stated, and the prompt that asks for it
    "stated": lambda prompt: ("untrained", prompt),
    "zero-shot": lambda prompt: ("zero-shot", without_examples(prompt)),
    "p-true": lambda prompt: ("p-true", true_or_false(prompt)),
}


def chosen(names):
    """"stated, p-true" -> ["stated", "p-true"]. Raises ValueError for an unknown one, with the nearest known one."""
    found = [name.strip() for name in names.split(",") if name.strip()]
    for name in found:
        if name not in READING:
            near = nearest(name, READING) or f"choose from {', '.join(READING)}"
            raise ValueError(f"no baseline is called {name!r}; {near}")
    return list(dict.fromkeys(found))


def free(row, gram):
    """The scores that need nothing but a row of samples.jsonl, and the samples' Gram matrix. -> {name: float}"""
    return {
        "probability": sequence_probability(row["answer_logprob"], row["answer_tokens"]),
        "consistency": self_consistency(row["answer"], row["samples"]),
        "clusters": cluster_entropy(gram),
    }


def without_examples(prompt):
    """Zero-shot; in chat form if there is one, because a bare label explains nothing."""
    return replace(prompt, examples=(), style="chat" if prompt.lm.tokenizer.chat_template else prompt.style)


def true_or_false(prompt):
    """The second turn asks whether the answer is true."""
    examples = tuple((q, a, str(float(c.rstrip("%")) > 50)) for q, a, c in prompt.examples)
    return replace(prompt, examples=examples, label="True or false:", ask="Is your answer true? Reply True or False.")


def base_rate(labels, n):
    """The accuracy on labelled questions as everybody's confidence. labels (M,) -> (n,)"""
    return np.full(n, np.mean(labels))


def family_prior(labels, families, asked):
    """Each question gets the accuracy of its family on labelled questions; an unseen family gets the base rate.

    labels (M,) of 0 and 1, families (M,), asked: the families of N questions -> (N,).
    """
    labels, families = np.asarray(labels, dtype=float), np.asarray(families)
    rate = {f: labels[families == f].mean() for f in set(families.tolist())}
    return np.array([rate.get(f, labels.mean()) for f in asked])


def sequence_probability(logprob, tokens):
    """Geometric mean of the probabilities of an answer's tokens, its end included. nats, count -> in (0, 1]"""
    return float(np.exp(logprob / tokens))


def self_consistency(answer, samples):
    """Share of the samples that equal the answer after normalisation. -> in [0, 1]"""
    return float(np.mean([normalise(s) == normalise(answer) for s in samples]))


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
    words = {text: lm.proceed(f" {text}") for text in ("True", "False")}
    if not all(exact.written(lm, ids, text) for text, ids in words.items()):
        return [None] * len(asked.prompts)
    logp = exact.log_policy(lm, asked, list(range(len(asked.prompts))), words, replace(config, rollout_temperature=1.0))
    return logp.softmax(-1)[:, 0].tolist()

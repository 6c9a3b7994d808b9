"""Stages 1 and 2 without any training: number of samples, kernel, embedder and calibrator, on cached samples.

    plug-in      H_n, the entropy of n samples, biased low
    jackknife    n H_n - (n - 1) mean_i H_(n-1) without sample i      Quenouille 1956; takes the bias of order 1/n away
    limit        the entropy of the true distribution of answers, in the toy world

Fewer samples than there are are the first ones of them. Fitted on up to a thousand labelled questions, shown on the
test part.
"""

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

import lm
import platt
from beyond import baselines
from beyond.readouts import log_odds
from entropy import gram, von_neumann
from eval import metrics
from infra.folder import Run
from infra.grading import grade
from infra.setup import load_model
from report.tables import lines

LABELLED = 1000  # at most
COUNTS = (3, 5, 10, 20)
KERNELS = [("rbf", 0.25), ("rbf", 1.0), ("rbf", 4.0), ("rbf", 16.0), ("cosine", 1.0)]
SHOWN = {"ece": "ECE", "brier": "Brier", "auroc": "AUROC", "auroc_within": "AUROC within"}


def temperature(scores, labels, asked):
    """sigma(score / T): logistic regression without offset and penalty. (N,), (N,), (M,) -> (M,)"""
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8).fit(scores[:, None], labels)
    return model.predict_proba(asked[:, None])[:, 1]


def isotonic(scores, labels, asked):
    """A step function, rising or falling as the labels say."""
    model = IsotonicRegression(y_min=0, y_max=1, increasing="auto", out_of_bounds="clip")
    return model.fit(scores, labels).predict(asked)


def newton(scores, labels, asked):
    return platt.fit(scores, labels).predict(asked)


class Samples:
    """The samples of a run, embedded: which questions are labelled, which are the test, who was right."""

    def __init__(self, folder, embedder=None):
        run = Run(folder)
        config = run.config()
        model, _ = load_model(config, run)
        rows = run.read("samples.jsonl")
        labelled = [r for r in rows if r["part"] in ("platt", "train")][:LABELLED]
        self.rows, self.config = labelled + [r for r in rows if r["part"] == "test"], config
        texts = [text for row in self.rows for text in row["samples"]]
        embedder = lm.load_embedder(embedder or config.embedder, model)
        self.embeddings = lm.embed(embedder, texts).reshape(len(self.rows), config.samples, -1)  # (N, n, d)
        self.correct = np.array([grade(r["answer"], r["answers"], config.grader) for r in self.rows])
        self.test = np.array([r["part"] == "test" for r in self.rows])
        self.labelled = ~self.test
        self.family = np.array([r["family"] for r in self.rows])[self.test]
        self.embed = lambda texts: lm.embed(embedder, texts)

    def score(self, scores, calibrate=newton):
        """Fit to the labelled questions, metrics of the test part."""
        p = calibrate(scores[self.labelled], self.correct[self.labelled], scores[self.test])
        return self.judge(p)

    def judge(self, confidence):
        found = metrics(confidence, self.correct[self.test], self.family)
        return {name: found[name] for name in SHOWN}


def counts(samples):
    """-> {n: the mean entropy in nats, plug-in and jackknife, and the metrics of both}"""
    kernel, gamma = samples.config.kernel, samples.config.gamma
    every = gram(samples.embeddings, kernel, gamma)  # (N, n, n)
    found = {}
    for n in (n for n in COUNTS if n <= every.shape[1]):
        k = every[:, :n, :n]
        plug_in = von_neumann(k)
        left = [von_neumann(np.delete(np.delete(k, i, 1), i, 2)) for i in range(n)]
        jackknife = n * plug_in - (n - 1) * np.mean(left, axis=0)
        found[n] = {
            "plug-in": float(plug_in[samples.test].mean()), "jackknife": float(jackknife[samples.test].mean()),
            "of plug-in": samples.score(plug_in), "of jackknife": samples.score(jackknife),
        }  # fmt: skip
    return found


def limit(samples):
    """Mean entropy of the true distributions of answers, in nats: what many samples would give; None if unknown."""
    rows = [r for r, test in zip(samples.rows, samples.test, strict=True) if test]
    if not rows[0]["truth"]:
        return None
    chance = np.array([list(r["truth"].values()) for r in rows])  # (N, 4)
    embeddings = samples.embed([answer for r in rows for answer in r["truth"]]).reshape(*chance.shape, -1)
    k = gram(embeddings, samples.config.kernel, samples.config.gamma)
    rho = np.sqrt(chance[:, :, None] * chance[:, None, :]) * k  # the same eigenvalues as the sum of p |e><e|
    lam = np.clip(np.linalg.eigvalsh(rho), 1e-300, 1)
    return float(-(lam * np.log(lam)).sum(1).mean())


def kernels(samples, n=10):
    """-> {kernel: metrics}"""
    found, few = {}, samples.embeddings[:, :n]
    for kernel, gamma in KERNELS:
        name = f"rbf, γ = {gamma:g}" if kernel == "rbf" else kernel
        found[name] = samples.score(von_neumann(gram(few, kernel, gamma)))
    return found


def calibrators(samples, n=10):
    """-> {score: {calibrator: metrics}}. Platt and temperature scaling take the log-odds of what is a probability."""
    few = gram(samples.embeddings[:, :n], samples.config.kernel, samples.config.gamma)
    entropy = von_neumann(few)
    likely = np.array([np.exp(r["answer_logprob"] / r["answer_tokens"]) for r in samples.rows])
    agree = np.array([baselines.self_consistency(r["answer"], r["samples"][:n]) for r in samples.rows])
    found = {}
    scores = {"entropy": 1 - entropy / np.log(n), "sequence probability": likely, "self-consistency": agree}
    for name, p in scores.items():
        odds = log_odds(p)
        found[name] = {
            "none": samples.judge(np.clip(p, 0, 1)[samples.test]),
            "Platt": samples.score(entropy if name == "entropy" else odds),
            "temperature": samples.score(odds, temperature),
            "isotonic": samples.score(entropy if name == "entropy" else p, isotonic),
        }
    return found


def mean(found):
    """The mean over seeds of dictionaries of one form."""
    first = found[0]
    if isinstance(first, dict):
        return {key: mean([f[key] for f in found]) for key in first}
    return None if first is None else float(np.mean(found))


@torch.no_grad()
def measure(folders, embedders):
    """-> everything for one kind of samples: means over the seeds."""
    each = {e: [Samples(folder, e) for folder in folders] for e in embedders}
    main = each[embedders[0]]
    return {
        "questions": int(main[0].test.sum()), "limit": mean([limit(s) for s in main]),
        "counts": mean([counts(s) for s in main]),
        "kernels": {e: mean([kernels(s) for s in of]) for e, of in each.items()},
        "calibrators": mean([calibrators(s) for s in main]),
    }  # fmt: skip


def markdown(found):
    text = (
        "`python -m experiments scores`: stages 1 and 2 without any training. Fewer samples are the first ones of "
        "many. Jackknife: n H_n - (n - 1) times the mean entropy without one of the samples, which takes away the "
        "bias of order 1/n. Fitted on up to a thousand labelled questions, shown on the test part; means over seeds."
    )
    out = ["# Samples, kernels, embedders and calibrators", "", text, ""]
    out += ["![Entropy, AUROC and ECE against the number of samples](counts.png)", ""]
    kinds, columns = ("plug-in", "jackknife"), ("ece", "auroc", "auroc_within")
    pairs = [(kind, c) for kind in kinds for c in columns]
    head = ["samples", *(f"{kind}, nats" for kind in kinds), *(f"{SHOWN[c]}, {kind}" for kind, c in pairs)]
    for of in found.values():
        seeds = ", ".join(map(str, of["seeds"]))
        out += [f"## {of['title']}", "", f"`{of['flags']}`, {of['questions']} test questions, seeds {seeds}.", ""]
        cells = {
            n: [f"{x:.3f}" for x in (*(row[kind] for kind in kinds), *(row[f"of {kind}"][c] for kind, c in pairs))]
            for n, row in of["counts"].items()
        }  # fmt: skip
        out += lines(head, cells)
        if of["limit"] is not None:
            out += ["", f"The entropy of the true distribution is {of['limit']:.3f} nats on average."]
        for title in ("kernels", "calibrators"):
            cells = {f"{a}, {b}": [f"{row[m]:.3f}" for m in SHOWN]
                     for a, of_a in of[title].items() for b, row in of_a.items()}  # fmt: skip
            out += ["", *lines([f"{title}, 10 samples", *SHOWN.values()], cells)]
        out.append("")
    return "\n".join(out)

"""The six claims of the paper, each beside what the toy world and SmolLM2 say: the table of docs/replication.md.

    python -m experiments.replication

It reads results/toy-reflection and results/smollm2-reflection, which `python -m experiments` wrote, and runs nothing.
A claim about two rows holds if the 95% interval of their paired difference lies on the claimed side of 0, is reversed
if it lies on the other one, and is a tie if it includes 0. Claim 1 also needs the four means in the claimed order.
"""

import json
from pathlib import Path

import numpy as np

from experiments.grid import BRIER, PAPER
from experiments.tables import fill
from report.tables import METHODS, lines

ROOT = Path(__file__).parent.parent
TABLES = {"toy": "toy-reflection", "SmolLM2": "smollm2-reflection"}
BASE, COT, ENTROPY, BRIER_ROW = METHODS["alone"], METHODS["untrained"], f"{PAPER}, stated", f"{BRIER}, stated"


def verdict(difference, low_is_good=False):
    """[difference, low, high] of a metric -> a word."""
    middle, low, high = difference
    if np.isnan(middle):  # constants have no ranks
        return "not defined"
    if not (low > 0 or high < 0):
        return "a tie"
    return "holds" if (high < 0) == low_is_good else "reversed"


def sides(difference):
    """The same where the claim is a tie."""
    word = verdict(difference)
    return {"a tie": "a tie, as claimed", "holds": "entropy ahead", "reversed": "Brier ahead"}.get(word, word)


def shown(difference):
    return "n/a" if np.isnan(difference[0]) else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*difference)


def minus(difference):
    middle, low, high = difference
    return [-middle, -high, -low]


def claims(parts):
    """-> for each claim: what was found, and the verdict"""
    test, *unseen = parts
    mean = {row: parts[test]["rows"][row]["mean"] for row in (BASE, COT, ENTROPY, BRIER_ROW)}
    against = {part: of["differences"] for part, of in parts.items()}
    brier = minus_of(against[test][PAPER][BRIER_ROW])  # entropy - Brier
    ece = [mean[row]["ece"] for row in (ENTROPY, BRIER_ROW, COT, BASE)]
    cot, reflecting = against[test][COT], against[test][BASE][COT]
    word = verdict(brier["ece"], True)
    yield f"{' / '.join(f'{x:.3f}' for x in ece)}; entropy - Brier {shown(brier['ece'])}", (
        word if word != "holds" or ece == sorted(ece) else "does not hold: another order")
    trained = min(cot[ENTROPY]["auroc"][1], cot[BRIER_ROW]["auroc"][1]) > 0
    both = f"{mean[BRIER_ROW]['auroc']:.3f} / {mean[ENTROPY]['auroc']:.3f} / {mean[COT]['auroc']:.3f}"
    above = "holds" if trained else "does not hold"
    yield f"{both}; Brier - entropy {shown(minus(brier['auroc']))}", (
        f"Brier ahead: {verdict(minus(brier['auroc']))}; both above the base: {above}")
    far = {part: minus_of(against[part][PAPER][BRIER_ROW]) for part in unseen}
    medians = [float(np.median([parts[part]["rows"][row]["mean"][m] for part in unseen]))
               for m in ("ece", "auroc") for row in (ENTROPY, BRIER_ROW)]  # fmt: skip
    words = {"ece": [verdict(far[part]["ece"], True) for part in unseen],
             "auroc": [sides(far[part]["auroc"]) for part in unseen]}  # fmt: skip
    of = f" (median of {len(unseen)} sets)" if len(unseen) > 1 else ""
    yield "ECE {:.3f} / {:.3f}, AUROC {:.3f} / {:.3f}".format(*medians) + of, (
        f"lower ECE: {tally(words['ece'])}; AUROC: {tally(words['auroc'])}")
    follows = [f"{mean[row]['spearman']:.2f}".replace("nan", "n/a") for row in (ENTROPY, BRIER_ROW)]
    yield f"{' / '.join(follows)}; {shown(brier['spearman'])}", (
        verdict(brier["spearman"]))
    yield f"ECE {shown(reflecting['ece'])}, AUROC {shown(reflecting['auroc'])}", (
        f"ECE: {verdict(reflecting['ece'], True)}; AUROC: {verdict(reflecting['auroc'])}")
    rows, teacher = parts[test]["rows"], against[test]["teacher"][ENTROPY]
    tokens = [rows[row]["tokens"] for row in (ENTROPY, METHODS["target"])]
    as_good = {"holds": "better", "reversed": "worse"}.get(verdict(teacher["auroc"]), verdict(teacher["auroc"]))
    yield (f"{tokens[0]:.0f} tokens a question instead of {tokens[1]:.0f}; the answers are the base model's; AUROC, "
           f"student - samples {shown(teacher['auroc'])}"), (
        f"fewer tokens: {'holds' if tokens[0] < tokens[1] else 'does not hold'}; ranking: {as_good}")


def minus_of(differences):
    return {metric: minus(d) for metric, d in differences.items()}


def tally(words):
    return words[0] if len(words) == 1 else ", ".join(f"{word} {words.count(word)}×" for word in dict.fromkeys(words))


PUBLISHED = {
    "ECE in domain: entropy < Brier < base + CoT < base": "7.2% / 15.7% / 34.2% / 42.0%",
    "AUROC in domain: Brier a little above entropy, both far above the base (+ CoT)": "83.4% / 81.5% / 66.2%",
    "unseen task: entropy stays calibrated, Brier does not; AUROC is a tie (entropy / Brier)":
        "ECE 3.2% / 33.3%, AUROC 66.7% / 66.9%",
    "Spearman to the target: entropy above Brier": "0.67 / 0.52",
    "reflection helps the untrained model: with - without": "ECE -7.8 points, AUROC +14.3 points",
    "one generation replaces K samples; answers as accurate": "K not stated",
}  # fmt: skip


def read():
    """-> {scale: parts of its report}"""
    files = {scale: ROOT / "results" / name / "report.json" for scale, name in TABLES.items()}
    texts = {scale: file.read_text(encoding="utf-8") for scale, file in files.items()}
    # what is not defined is null there, as JSON has no other word for it
    return {scale: json.loads(text.replace("null", "NaN"))["parts"] for scale, text in texts.items()}


PAPERS = {  # its row: ours, and its ECE, AUROC and rank correlation in domain, ECE and AUROC on GSM8K
    "Base": (BASE, (0.4199, 0.5189, 0.03, 0.3222, 0.5379)),
    "Base + CoT": (COT, (0.3417, 0.6618, 0.17, 0.2225, 0.6217)),
    "Brier": (BRIER_ROW, (0.1570, 0.8336, 0.52, 0.3328, 0.6689)),
    "Entropy (theirs)": (ENTROPY, (0.072, 0.8153, 0.67, 0.0315, 0.6673)),
}


def rows_of_the_paper(found):
    """-> its table with our numbers, in markdown. found: {scale: parts}; of several unseen sets the median"""
    rows = {}
    for name, (ours, published) in PAPERS.items():
        rows[f"{name}, paper"] = [f"{x:.3f}" for x in published]
        for scale, (test, *unseen) in ((scale, list(parts.values())) for scale, parts in found.items()):
            far = [np.median([of["rows"][ours]["mean"][m] for of in unseen]) for m in ("ece", "auroc")]
            near = [test["rows"][ours]["mean"][m] for m in ("ece", "auroc", "spearman")]
            rows[f"{name}, {scale}"] = [f"{x:.3f}".replace("nan", "n/a") for x in (*near, *far)]
    heads = ["in domain: ECE", "AUROC", "Spearman to the target", "unseen: ECE", "AUROC"]
    return "\n".join(lines(["", *heads], rows))


def table(parts):
    """-> the table of claims in markdown. parts: {scale: parts}"""
    found, rows = {scale: list(claims(of)) for scale, of in parts.items()}, {}
    for i, (claim, paper) in enumerate(PUBLISHED.items()):
        rows[f"{i + 1}. {claim}"] = [paper, *(f"{of[i][0]}. **{of[i][1]}**" for of in found.values())]
    return "\n".join(lines(["claim", "paper", *found], rows)).replace("---:", "---")


if __name__ == "__main__":
    document, parts = ROOT / "docs" / "replication.md", read()
    fill(document, "replication:rows", rows_of_the_paper(parts))
    fill(document, "replication", table(parts))

"""What graders said of the labelled answers: five of them beside the accepted ones, and how far the graders agree.

That a grader is too strict, or a prompt wrong, is seen here at a glance and in no metric.
"""

import numpy as np

from infra.grading import FAIR, grade

SHOWN, ACCEPTED = 5, 8  # graded answers; accepted ones of each
OTHERS = {"judge": "judge", "file": "label file"}


def look(config, pairs):
    """Rows of samples.jsonl with their rows of targets.jsonl -> what report.json says of the labels"""
    label = [t["correct"] for _, t in pairs]
    by = {"exact": [t["exact"] for _, t in pairs]}
    by["contains"] = [grade(s["answer"], s["answers"], "contains") for s, _ in pairs]
    by |= {OTHERS[config.grader]: label} if config.grader in OTHERS else {}
    agree = [len(set(labels)) == 1 for labels in zip(*by.values(), strict=True)]
    order = sorted(range(len(pairs)), key=lambda i: agree[i])  # the disputed ones first: there a grader is wrong
    right, wrong = [i for i in order if label[i]], [i for i in order if not label[i]]
    examples = [{name: pairs[i][0][name] for name in ("question", "answer")}
                | {"accepted": " | ".join(pairs[i][0]["answers"][:ACCEPTED]), "label": "right" if label[i] else "wrong"}
                for i in [*right[: max(2, SHOWN - len(wrong))], *wrong][:SHOWN]]  # fmt: skip
    share = {name: float(np.mean(labels)) for name, labels in (by | {"agree": agree}).items()}
    said = f"{', '.join(f'{name} {share[name]:.0%}' for name in by)}; they agree on {share['agree']:.0%}"
    warnings = doubts(config, float(np.mean(label)), share)
    return {"n": len(pairs), "graders": share, "said": said, "examples": examples, "warnings": warnings}


def doubts(config, accuracy, share):
    """-> a sentence that says what to try where nearly all labelled answers are wrong, or right"""
    if FAIR[0] <= accuracy <= FAIR[1]:
        return []
    low = accuracy < FAIR[0]
    hints = ["--prompt fewshot"] * (low and config.prompt == "chat")
    used, other = ("exact", "contains") if low else ("contains", "exact")
    hints += [f"--grader {other} ({share[other]:.0%} right)"] * (config.grader == used)
    hints += ["easier questions" if low else "harder questions"]
    return [f"{accuracy:.1%} of the labelled answers are right, which leaves hardly anything to tell apart, and any "
            f"constant near it looks perfect: see the graded examples, and try {', or '.join(hints)}."]  # fmt: skip


def text(seen):
    """-> the same for a terminal"""
    lines = [f"  {e['label']}: {e['answer']!r} to {e['question']!r}, accepted: {e['accepted']!r}"
             for e in seen["examples"]]  # fmt: skip
    return "\n".join([f"graders of the {seen['n']} labelled answers: {seen['said']}", *lines])

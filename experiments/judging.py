"""How far a judge agrees with a human: 100 answers of SmolLM2-135M to questions of `facts`, graded by hand.

    python -m experiments.judging models/smollm2-135m-instruct

The answers are in facts/graded_by_hand.jsonl, 80 that exact match calls wrong and 20 that it calls right. By hand an
answer is right by the paper's rules: it means the same as an accepted one, or is more or less specific. Writes
results/judging.json and its lines in docs/data.md.
"""

import json
import sys
from pathlib import Path

import data
import lm
from beyond.graders import verdicts
from experiments.tables import fill
from infra.grading import grade

ROOT = Path(__file__).parent.parent


def measure(judge):
    """-> {"judge", "n", and for exact match, the judge and both together the share that agrees, and of yes}"""
    questions = {q.id: q for q in data.load("facts")}
    lines = (ROOT / "facts" / "graded_by_hand.jsonl").read_text(encoding="utf-8").splitlines()
    graded = [json.loads(line) for line in lines]
    rows = [{"question": questions[g["id"]].question, "answers": list(questions[g["id"]].answers),
             "answer": g["answer"]} for g in graded]  # fmt: skip
    hand, exact = [g["correct"] for g in graded], [grade(r["answer"], r["answers"]) for r in rows]
    said, model = [], lm.load(judge)
    for start in range(0, len(rows), 20):
        said += verdicts(model, rows[start : start + 20])
    found = {"judge": Path(judge).name, "n": len(rows), "right by hand": sum(hand)}
    both = list(map(max, exact, said))
    graders = {"exact match": exact, "judge alone": said, "judge where exact match says wrong": both}
    for name, labels in graders.items():
        found[name] = {"agrees": sum(a == b for a, b in zip(labels, hand, strict=True)), "right": sum(labels)}
    return found


def text(found):
    rows = {name: of for name, of in found.items() if isinstance(of, dict)}
    table = [f"| {name} | {of['agrees']} | {of['right']} |" for name, of in rows.items()]
    return "\n".join([f"| of {found['n']} answers, {found['right by hand']} right by hand | agrees | says right |",
                      "|---|---:|---:|", *table])  # fmt: skip


if __name__ == "__main__":
    found = measure(sys.argv[1])
    (ROOT / "results" / "judging.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    fill(ROOT / "docs" / "data.md", "judging", text(found))
    print(text(found))

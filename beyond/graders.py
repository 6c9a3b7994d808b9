"""Is an answer right? By its characters (infra.grading), by a language model as judge, or by labels that exist already.

The paper has GPT-4o-mini say yes or no. Here any causal language model does, by its probabilities of these words:

    P(yes) > P(no)        after the question, its accepted answers and the answer, with four examples

An answer that exact match accepts is right without asking. The rules are the paper's, in our words.
"""

import lm
from infra import folder, models, parallel, progress
from infra.files import parsed, read_rows
from infra.grading import grade

RULES = (
    "You grade answers. Say yes if the answer is a valid reply to the question and means the same as one of the "
    "accepted answers, even if it is more or less specific. Otherwise say no."
)
EXAMPLES = (
    ("Who wrote Hamlet?", ["William Shakespeare"], "Shakespeare", "yes"),
    ("In which year did Apollo 11 land on the Moon?", ["1969"], "1968", "no"),
    ("Where is the Eiffel Tower?", ["Paris"], "Paris, France", "yes"),
    ("What do bees make?", ["honey"], "silk", "no"),
)
ACCEPTED = 8  # answers are shown at most; some questions have dozens of spellings
BATCH = 32


def graded(config, run, rows, model):
    """Rows of samples.jsonl -> N labels, 1 for a right answer, 0 for a wrong one. A judge is loaded as `model` is."""
    if config.grader == "file":
        return labels(config, {row["id"]: row["answer"] for row in rows})
    found = [grade(row["answer"], row["answers"], config.grader) for row in rows]
    if config.grader == "judge":
        wrong = [row for row, right in zip(rows, found, strict=True) if not right and row["answer"]]
        said = judged(config, run, {key_of(row): row for row in wrong}, model)
        found = [right or said.get(key_of(row), 0) for row, right in zip(rows, found, strict=True)]
    return found


def labels(config, said):
    """JSONL of `id` and `correct` -> the labels of N questions. said: {id: the answer of this run, or None before it}.

    Raises ValueError with file and line, also where the `answer` beside a label is another one.
    """
    found = {}
    for where, row in read_rows(config.labels):
        if "id" not in row or row.get("correct") not in (0, 1) or str(row["id"]) in found:
            raise ValueError(f"{where}: needs an `id` of its own and `correct`, 0 or 1")
        found[str(row["id"])] = int(row["correct"])
        own, labelled = said.get(str(row["id"])), row.get("answer")
        if None not in (own, labelled) and own != str(labelled).strip():
            raise ValueError(f"{where}: labels the answer {labelled!r}, and this run answered {own!r}")
    missing = [i for i in said if i not in found]
    if missing:
        raise ValueError(f"{config.labels} lacks {len(missing)} of {len(said)} labels, as that of {missing[0]}")
    return [found[i] for i in said]


def key_of(row):
    return folder.short([row["question"], row["answers"], row["answer"]])


def judged(config, run, asked, like):
    """Ask the judge about each of {key: row}, once; what it said is kept in the run folder. -> {key: 0 or 1}"""
    asking = folder.short([config.judge, folder.local(config.judge), RULES, EXAMPLES])
    file = run.path(f".judged-{asking}.json")
    said = parsed(file.read_text(encoding="utf-8"), file) if file.exists() else {}
    left = sorted(asked.keys() - said.keys(), key=lambda key: (len(asked[key]["question"]), key))
    judge = load(config, like) if left else None
    for start in progress.Bar(range(0, len(left), BATCH), desc="judging answers", unit="batch"):
        batch = left[start : start + BATCH]
        said |= dict(zip(batch, verdicts(judge, [asked[key] for key in batch]), strict=True))
        parallel.keep(file, said)
    return said


def load(config, like, asked=()):
    """The judge, on the device of another model and in its precision. Raises ValueError if it cannot be used.

    Nor can it for a question that does not fit into its context with an answer: the sampled one, or before that one of
    as many of the judge's own tokens as the model may sample.
    """
    judge = lm.load(config.judge, like.device, like.model.dtype)
    models.check(judge, lm)
    for q in asked:
        more = config.answer_tokens * (not hasattr(q, "answer")) + max(map(len, words(judge)))
        with models.refused(f"the judge {config.judge}, question {q.id}"):
            lm.check_context(judge, [instruction(judge, {"answer": "", **vars(q)})], more)
    return judge


def words(judge):
    return [judge.proceed(" yes"), judge.proceed(" no")]


def verdicts(judge, rows):
    """Rows with a question, its answers and an answer -> 1 (yes) or 0 each."""
    logp, _ = lm.completion_logprobs(judge, [instruction(judge, row) for row in rows], [words(judge)] * len(rows))
    yes, no = logp.sum(-1).view(-1, 2).unbind(1)
    return (yes > no).long().tolist()


def instruction(judge, row):
    """What the judge reads, as token ids."""
    parts = [RULES]
    for question, accepted, answer, said in [*EXAMPLES, (row["question"], row["answers"], row["answer"], "")]:
        lines = {"Question": question, "Accepted": " | ".join(accepted[:ACCEPTED]), "Answer": answer}
        lines = [f"{name}: {judge.plain(' '.join(text.split()))}" for name, text in lines.items()]
        parts.append("\n".join([*lines, f"Correct: {said}".rstrip()]))
    return judge.begin("\n\n".join(parts))

"""Questions and prompts.

A question set is a list of `Question`: from the toy world, the built-in `facts`, a JSONL file, or the Hugging Face hub.
`Prompt` turns a question into token ids for the two turns: the answer, and the confidence in it as frozen text.

From infra: files (read_questions, names, nearest), hub, text (render, stop_ids).
"""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from infra.files import names, nearest, read_questions
from infra.hub import HUB, pairs
from infra.text import MARK, render, stop_ids

FACTS = Path(__file__).parent / "facts" / "facts.jsonl"


@dataclass(frozen=True)
class Question:
    """One question, its accepted answers, and the family (kind of task) that it belongs to.

    source: the name that it was loaded by. truth: the known probability of each answer, in the toy world only.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    family: str
    source: str = ""
    truth: dict[str, float] | None = field(default=None, hash=False)

    @property
    def words(self):
        """The question as few-shot prompts have it, where the end of a line ends a turn."""
        return " ".join(self.question.splitlines())


# ---- where questions come from ----------------------------------------------------------------------------------


def from_hub(name, held_out=False):
    """A data set of infra.hub by its short name -> questions."""
    found = enumerate(pairs(name, held_out))
    return [Question(f"{name}-{i}", q.strip(), tuple(dict.fromkeys(a)), name) for i, (q, a) in found]


def from_jsonl(path):
    """JSONL of `question`, `answers` (and `id`, `family`) -> questions. Raises ValueError with file and line."""
    stem, questions, seen = Path(path).stem, [], set()
    for number, (where, row) in enumerate(read_questions(path), 1):
        row = {"id": f"{stem}-{number}", "family": stem} | {k: v for k, v in row.items() if v is not None}
        answers, identity = row.get("answers"), str(row["id"])
        if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
            raise ValueError(f"{where}: needs `answers`, a non-empty list of non-empty strings")
        if identity in seen:
            raise ValueError(f"{where}: the id {identity!r} occurs twice")
        seen.add(identity)
        questions.append(Question(identity, row["question"].strip(), tuple(answers), str(row["family"])))
    return questions


def files_of(every):
    """-> {name: path} of those in a comma-separated list that are files, or parts of one."""
    found = {n: FACTS if n.partition(":")[0] == "facts" else Path(n) for n in names(every)}
    return {name: path for name, path in found.items() if path.is_file()}


def load(name, held_out=False):
    """A comma-separated list of names -> questions. A name is `facts`, `facts:FAMILY`, a hub set, or a path.

    held_out: read the validation or test split of a hub set, not "train". Raises ValueError that names the nearest
    known name for an unknown one, and for a name that occurs twice.
    """
    questions, parts = {}, names(name)
    for part in parts:
        if part and parts.count(part) > 1:
            raise ValueError(f"{part} is named twice")
        for q in _load_one(part, held_out):
            once = questions.setdefault(q.words, replace(q, source=part))  # twice, it could be in two parts
            questions[q.words] = replace(once, answers=tuple(dict.fromkeys([*once.answers, *q.answers])))
    ids = Counter(q.id for q in questions.values())  # of several files
    return [q if ids[q.id] == 1 else replace(q, id=f"{q.source}: {q.id}") for q in questions.values()]


def _load_one(name, held_out):
    base, _, family = name.partition(":")
    if base == "facts":
        every = from_jsonl(FACTS)
        found = [q for q in every if family in ("", q.family)]
        if not found:
            known = sorted({q.family for q in every})
            raise ValueError(f"facts has no family {family!r}; choose from {', '.join(known)}")
        return found
    if name in HUB:
        return from_hub(name, held_out)
    if Path(name).is_file():
        return from_jsonl(name)
    near = nearest(name, ["facts", *HUB]) or f"choose from facts, {', '.join(HUB)}"
    raise ValueError(f"no data set or file called {name!r}; {near}")


def split(questions, sizes, seed):
    """Shuffle and cut into disjoint parts, {"platt": 500, ...} -> {"platt": [...], ...}.

    All parts together have equal shares of the sources, as far as they go. Raises ValueError for too few questions.
    """
    if len(questions) < sum(sizes.values()):
        raise ValueError(f"{len(questions)} questions are too few for the sizes {sizes}")
    rng, sources = np.random.default_rng(seed), {}
    for q in questions:
        sources.setdefault(q.source, []).append(q)
    turns = []
    for members in sources.values():
        turns += zip(rng.permutation(len(members)).tolist(), members, strict=True)
    dealt = [q for _, q in sorted(turns, key=lambda pair: pair[0])][: sum(sizes.values())]  # the sources in turn
    rng.shuffle(dealt)
    ends = np.cumsum(list(sizes.values()))
    return {name: dealt[end - size : end] for (name, size), end in zip(sizes.items(), ends, strict=True)}


# ---- statements and prompts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """A form in which a confidence is stated: a label, then a number. ask: what a chat model is asked."""

    label: str
    ask: str
    number: str  # a pattern, with all that belongs to the number
    sure: float  # the number for a confidence of 1
    unsure: float  # and of 0
    form: str = "{:.2f}"  # of the number
    stop: str = "\n"  # what ends it

    def write(self, confidence):
        """0.73 -> "73%" or, as the probability that the answer is wrong, "0.27"."""
        return self.form.format(self.unsure + confidence * (self.sure - self.unsure))

    def read(self, text):
        """-> a confidence in [0, 1]; None unless one number in ASCII digits follows the label, then only full stops."""
        _, label, after = text.partition(self.label)
        match = re.fullmatch(rf"\s*{self.number}[\s.]*", after)
        stated = (float(match[1]) - self.unsure) / (self.sure - self.unsure) if label and match else None
        return stated + 0.0 if stated is not None and 0 <= stated <= 1 else None  # no -0.0


PERCENT = r"([0-9]{1,3}(?:\.[0-9]+)?)\s?%"
STATEMENTS = {
    "confidence": Statement("Confidence:", "How likely is it that your answer is right? Reply with one number in "
                            "percent, like this: Confidence: 62%", PERCENT, 100, 0, "{:.0f}%", "\n%"),
    "uncertainty": Statement("Uncertainty:", "How likely is it that your answer is wrong? Reply with one number from "
                             "0 to 1, like this: Uncertainty: 0.38", r"([01](?:\.[0-9]+)?)", 0, 1),
}  # fmt: skip


def parse_confidence(text):
    """-> 0.73 for "Confidence: 73%"; None unless one number from 0% to 100% follows the label, and no other text."""
    return STATEMENTS["confidence"].read(text)


# question, thought, answer, reflection, confidence; wrong answers are doubted; no built-in family asks such questions
EXAMPLES = (
    ("How many legs does a spider have?", "Spiders are arachnids, which have four pairs of legs.", "8",
     "All arachnids have eight legs, so I am sure.", 0.97),
    ("Who painted the Mona Lisa?", "It is a portrait of the Italian Renaissance.", "Leonardo da Vinci",
     "It is his most famous painting, and nobody else comes to mind.", 0.95),
    ("What is the tallest animal on land?", "Elephants are very large.", "Elephant",
     "An elephant is the heaviest, but a giraffe is probably taller.", 0.15),
    ("Which instrument has 88 keys?", "A full keyboard has 52 white keys and 36 black ones.", "Piano",
     "A modern piano has 88 keys, and an organ has fewer.", 0.90),
    ("In which year did the Berlin Wall fall?", "It fell at the end of the Cold War.", "1991",
     "It was around 1990, but I do not remember the exact year.", 0.40),
)  # fmt: skip
ASK = "Answer the question with a few words and nothing else."
ASK_REASONED = ("Think in one or two sentences, on a line that begins with 'Reasoning:'. Then give a short, exact "
                "answer on a line that begins with 'Answer:'. If you do not know, guess.")  # fmt: skip
REFLECT = "First reflect in one or two sentences, on one line, on why your answer might be right or wrong."


@dataclass(frozen=True, eq=False)
class Prompt:
    """Question -> token ids of the two turns. style: "fewshot" (raw text) or "chat" (the tokenizer's template).

    The first turn asks for an answer, after a thought if it is `reasoned`; the second one for a `statement`, after a
    reflection of at most so many tokens. No question or answer ends a turn, and no token stands across a border.
    """

    lm: object
    style: str
    examples: tuple = EXAMPLES
    reasoned: bool = False
    reflection: int = 0
    statement: Statement = STATEMENTS["confidence"]
    shown: str = "answer"  # by the second turn, or the "thought" before it too

    def first_turn(self, question):
        """The answer comes next, or the thought before it."""
        first = "Reasoning:" if self.reasoned else "Answer:" if self.style == "fewshot" else ""
        return self._encode(self._asked(question, False) + first)

    def second_turn(self, question, answer, thought="", probability=None):
        """The answer is frozen text. -> context, turn: two lists of token ids.

        The base model reads the context, and the adapter is on from the turn on. Then comes the number or reflection.
        """
        closing, opening = self._between(self._how_sure())
        context = self._encode(self._asked(question, True))
        reply = self._answered(self._line(answer), self._line(thought) if self.shown == "thought" else "")
        told = self.told(probability)
        if told and self.style == "fewshot":  # on a line of its own, which the turn's first token ends
            told = "\n" + told.removesuffix("\n")
        context += self.lm.proceed(reply + closing + told)
        return context, self.lm.proceed(opening + ("Reflection:" if self.reflection else self.statement.label))

    def told(self, probability):
        """What it is told of its answer before it is asked: nothing. See beyond/tell.py."""
        return ""

    def forced(self, last, label):
        """What is forced after a thought that ends with `last`: a label on a new line. It is no action of the model."""
        end, ask = self.lm.tokenizer.decode([last]), ASK if label == "Answer:" else self.statement.ask
        if self.style == "chat" and last in stop_ids(self.lm, ""):  # its reply is over: the next one begins so
            return self.lm.proceed("".join(self._between(ask)).removeprefix(end) + label)
        return self.lm.proceed(("" if end.endswith("\n") else "\n") + label)

    def _asked(self, question, second):
        """All before the model's reply to a question, with the examples of one of the turns."""
        thinks = self.reasoned and (not second or self.shown == "thought")
        turns, text, ask = [], "", ASK_REASONED if thinks else ASK
        for asked, thought, answer, reflection, confidence, *probability in self.examples:
            answer = self._answered(answer, thought if thinks else "")
            turns.append((f"{ask}\n\n{asked}", answer))
            text += f"Question: {asked}\n{answer}\n"
            if second:
                told, said = self.told(*probability or [None]), f"Reflection: {reflection}\n" if self.reflection else ""
                said += f"{self.statement.label} {self.statement.write(confidence)}"
                turns.append((told + self._how_sure(), said))
                text += f"{told}{said}\n"
            text += "\n"
        if self.style == "chat":
            return render(self.lm, [*turns, (f"{ask}\n\n{MARK}", None)]).replace(MARK, self.lm.plain(question))
        return f"{text}Question: {self._line(question)}\n"

    def _answered(self, answer, thought):
        label = "Answer: " if thought or self.style == "fewshot" else ""
        return (f"Reasoning: {thought}\n" if thought else "") + label + answer

    def _how_sure(self):
        return f"{REFLECT} {self.statement.ask}" if self.reflection else self.statement.ask

    def _between(self, ask):
        """What comes after a reply: its end in the chat template, and all before the next one."""
        if self.style == "fewshot":
            return "", "\n"
        _, closing, opening = render(self.lm, [("any question", MARK), (MARK, None)]).split(MARK)
        return closing, ask + opening

    def _encode(self, text):
        return self.lm.begin(text) if self.style == "fewshot" else self.lm.encode(text)

    def _line(self, text):
        return self.lm.plain(" ".join(text.splitlines()))  # in raw text the end of a line ends a turn


def clean_answer(text):
    """The answer is the first line of what was generated that is not blank."""
    return next(iter(text.strip().splitlines()), "").strip()

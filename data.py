"""Questions, prompts and grading.

A question set is a list of `Question`. It comes from the toy world, from the built-in `facts`, from a JSONL file with
`question` and `answers`, or from the Hugging Face hub through a descriptor of a few lines. `Prompt` turns a question
into token ids for the two turns: the answer, and the confidence in an answer that is frozen text.

From infra: files (read_questions; nearest, for names that are not there).
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from infra.files import nearest, read_questions

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


# ---- where questions come from ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubSet:
    """How to read one data set of the hub: its path, its splits, and a row -> (question, answers) function."""

    path: str
    config: str | None
    held_out: str  # the split for --ood; --dataset takes "train"
    read: Callable[[dict], tuple[str, list[str]]]


HUB = {
    "trivia_qa": HubSet("mandarjoshi/trivia_qa", "rc.nocontext", "validation",
                        lambda row: (row["question"], [row["answer"]["value"], *row["answer"]["aliases"]])),
    "nq_open": HubSet("google-research-datasets/nq_open", None, "validation",
                      lambda row: (row["question"], row["answer"])),
    "web_questions": HubSet("stanfordnlp/web_questions", None, "test", lambda row: (row["question"], row["answers"])),
    "gsm8k": HubSet("openai/gsm8k", "main", "test",
                    lambda row: (row["question"], [row["answer"].rsplit("####", 1)[-1].strip()])),
    "sciq": HubSet("allenai/sciq", None, "test", lambda row: (row["question"], [row["correct_answer"]])),
}  # fmt: skip


def from_hub(name, held_out=False, rows=None):
    """A data set of the hub by its short name -> questions. `rows` replaces the download (tests, local copies)."""
    entry = HUB[name]
    if rows is None:
        import datasets  # a second of import time that only this path pays

        rows = datasets.load_dataset(entry.path, entry.config, split=entry.held_out if held_out else "train")
    pairs = [entry.read(row) for row in rows]
    return [Question(f"{name}-{i}", q.strip(), tuple(dict.fromkeys(a)), name) for i, (q, a) in enumerate(pairs)]


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


def files_of(names):
    """-> {name: path} of those in a comma-separated list that are files, or parts of one."""
    found = {n: FACTS if n.partition(":")[0] == "facts" else Path(n) for n in map(str.strip, names.split(","))}
    return {name: path for name, path in found.items() if path.is_file()}


def load(name, held_out=False):
    """A comma-separated list of names -> questions. A name is `facts`, `facts:FAMILY`, a hub set, or a path.

    held_out: read the validation or test split of a hub set, not "train". Raises ValueError that names the nearest
    known name for an unknown one, and for a name that occurs twice.
    """
    questions, parts = {}, [part.strip() for part in name.split(",")]
    for part in parts:
        if part and parts.count(part) > 1:
            raise ValueError(f"{part} is named twice")
        for q in _load_one(part, held_out):
            questions.setdefault(q.question, replace(q, source=part))  # one that is asked twice could be in two parts
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

    The sources have equal shares of the whole, as far as each goes, and the parts are alike. Raises ValueError where
    there are too few questions.
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


# ---- prompts ----------------------------------------------------------------------------------------------------

# Question, answer, and a stated confidence. Some answers are wrong and are doubted, so that the format shows the
# whole range; they come from kinds of questions that no built-in family asks.
EXAMPLES = (
    ("How many legs does a spider have?", "8", "97%"),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci", "95%"),
    ("What is the tallest animal on land?", "Elephant", "15%"),
    ("Which instrument has 88 keys?", "Piano", "90%"),
    ("In which year did the Berlin Wall fall?", "1991", "40%"),
)
ASK = "Answer the question with a few words and nothing else."
LABEL = "Confidence:"
HOW_SURE = f"How likely is it that your answer is right? Reply with one number in percent, like this: {LABEL} 62%"
THINK = "Think in one or two sentences whether your answer is right."


@dataclass(frozen=True, eq=False)
class Prompt:
    """Question -> token ids of the two turns. style: "fewshot" (raw text) or "chat" (the tokenizer's template).

    The second turn asks `ask`, in chat form alone, and begins with `label`; examples: question, answer, and what
    follows the label. No question or answer ends a turn: names of special tokens in it are ordinary characters.
    """

    lm: object
    style: str
    examples: tuple = EXAMPLES
    label: str = LABEL
    ask: str = HOW_SURE

    def answer(self, question):
        """The first turn: what comes next is the answer. The examples show both turns, so that the second can go on."""
        if self.style == "chat":
            turns = []
            for q, a, c in self.examples:
                turns += [(f"{ASK}\n\n{q}", a), (self.ask, f"{self.label} {c}")]
            return self.lm.encode(self._chat([*turns, (f"{ASK}\n\n{self.lm.plain(question)}", None)]))
        shots = "".join(f"Question: {q}\nAnswer: {a}\n{self.label} {c}\n\n" for q, a, c in self.examples)
        return self.lm.encode(f"{shots}Question: {self._line(question)}\nAnswer:", special=True)

    def confidence(self, question, answer, reason=False):
        """The second turn, with the answer as frozen text. -> context, turn: two lists of token ids.

        The context begins with `answer(question)`, which need not be read again. The base model reads it; the adapter
        is on from the turn on. A percentage or the reasoning comes next. The pieces are encoded apart, so that no token
        stands across a border.
        """
        context = self.answer(question)
        if self.style == "chat":
            last = f"{THINK} {self.ask}" if reason else self.ask
            # what the template puts after an answer, and around the next turn
            closing, _, opening = self._chat([(ASK, "ANSWER"), (last, None)]).rpartition("ANSWER")[2].partition(last)
            turn = self.lm.proceed(last + opening + ("" if reason else self.label))
            return context + self.lm.proceed(self.lm.plain(answer) + closing), turn
        turn = self.lm.proceed("\nReasoning:" if reason else f"\n{self.label}")
        return context + self.lm.proceed(f" {self._line(answer)}"), turn

    def after_reasoning(self, thought):
        """What is forced after the reasoning, on a line of its own. The model did not choose it: the loss has none."""
        return self.lm.proceed(("" if self.lm.decode(thought).endswith("\n") else "\n") + self.label)

    def _line(self, text):
        """In raw text the end of a line ends a turn."""
        return self.lm.plain(" ".join(text.splitlines()))

    def _chat(self, turns):
        messages = [{"role": role, "content": text} for pair in turns
                    for role, text in zip(("user", "assistant"), pair, strict=True) if text is not None]  # fmt: skip
        return self.lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True,
                                                     enable_thinking=False)  # fmt: skip


def clean_answer(text):
    """The answer is the first line of what was generated."""
    return next(iter(text.strip().splitlines()), "").strip()


def parse_confidence(text):
    """-> 0.73 for "Confidence: 73%"; None unless the text states one number from 0 to 100 once, with a percent sign.

    Nothing but blanks and full stops may follow the number. Only ASCII digits count.
    """
    _, label, after = text.partition(LABEL)
    match = re.fullmatch(r"\s*([0-9]{1,3}(?:\.[0-9]+)?)\s?%[\s.]*", after)
    if not label or not match or float(match[1]) > 100:
        return None
    return float(match[1]) / 100


# ---- grading ----------------------------------------------------------------------------------------------------

_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’“”´`–—", " "))


def normalise(text):
    """Lower case, no diacritics, no punctuation, no articles, single blanks (after SQuAD's script, Rajpurkar 2016)."""
    text = unicodedata.normalize("NFKD", text).lower()
    text = "".join(c for c in text if not unicodedata.combining(c)).translate(_PUNCTUATION)
    words = text.split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def _number(text):
    match = re.fullmatch(r"[$€£]?\s*([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+)\s*[%.]?", text.strip())
    return float(match[1].replace(",", "")) if match else None


def grade(answer, accepted, grader="exact"):
    """Is `answer` one of the accepted ones? 1 or 0.

    "exact": equal after normalisation, or equal as numbers. "contains": an accepted answer occurs in it as words.
    """
    number, ours = _number(answer), normalise(answer)
    for gold in accepted:
        value = _number(gold)
        if number is not None and value is not None:
            if number == value:
                return 1
            continue  # two numbers are never compared as words: "-5" is not "5"
        theirs = normalise(gold)
        # an accepted answer of punctuation alone normalises to nothing, and nothing must not match everything
        if theirs and (ours == theirs or grader == "contains" and f" {theirs} " in f" {ours} "):
            return 1
    return 0

"""Data sets of the Hugging Face hub as questions and answers: a descriptor of a few lines each."""

from collections.abc import Callable
from dataclasses import dataclass


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


def pairs(name, held_out=False, rows=None):
    """A data set by its short name -> (question, answers) pairs. `rows` replaces the download (tests, local copies)."""
    entry = HUB[name]
    if rows is None:
        import datasets  # a second of import time that only this path pays

        rows = datasets.load_dataset(entry.path, entry.config, split=entry.held_out if held_out else "train")
    return [entry.read(row) for row in rows]

"""Data sets of the Hugging Face hub as questions and answers: a line or two each."""

HUB = {  # path, config, split for --ood (--dataset takes "train"), row -> (question, answers)
    "trivia_qa": ("mandarjoshi/trivia_qa", "rc.nocontext", "validation",
                  lambda row: (row["question"], [row["answer"]["value"], *row["answer"]["aliases"]])),
    "nq_open": ("google-research-datasets/nq_open", None, "validation",
                lambda row: (row["question"], row["answer"])),
    "web_questions": ("stanfordnlp/web_questions", None, "test", lambda row: (row["question"], row["answers"])),
    "gsm8k": ("openai/gsm8k", "main", "test",
              lambda row: (row["question"], [row["answer"].rsplit("####", 1)[-1].strip()])),
    "sciq": ("allenai/sciq", None, "test", lambda row: (row["question"], [row["correct_answer"]])),
}  # fmt: skip


def pairs(name, held_out):
    """A data set by its short name -> (question, answers) pairs."""
    import datasets  # a second of import time that only this path pays

    path, config, other, read = HUB[name]
    return [read(row) for row in datasets.load_dataset(path, config, split=other if held_out else "train")]

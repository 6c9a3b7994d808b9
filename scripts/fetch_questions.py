"""Make the question files of `python -m experiments smollm2-arms` from the Hugging Face hub.

    python scripts/fetch_questions.py                # -> questions/*.jsonl (3 MB; the download is larger)

The files of the published tables are not in the repository. They hold, as `question` and `answers`:

    triviaqa_train   4,613 questions of TriviaQA's training split, with normalised answers. Which ones is not known any
                     more: here they are the first 4,613, with the answers as they are written.
    webquestions     all 3,778 of the *training* split of WebQuestions (nothing is trained on them), with a capital
                     letter, in the order of another edition
    gsm8k_test       the first 600 of GSM8K's test split, the final numbers without commas

So expect other numbers than the published ones. The last two files may be the same, if the hub has the same text in the
same order, which was not tried. A file that is there is kept. For each one it is said whether it is the published one,
byte for byte.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from data import from_hub  # noqa: E402

SETS = {  # file: name, held out, number, form of the id, source, sha256 of the published file
    "triviaqa_train": ("trivia_qa", False, 4613, "triviaqa-train-{}", "TriviaQA train (rc.nocontext), Apache-2.0",
                       "11d7ea4fb9f17154867de616c1e16d1307360c828955cb00236ac7955e93d8a0"),
    "webquestions": ("web_questions", False, 3778, "wqr{:06}", "WebQuestions, CC-BY-4.0",
                     "ba3ac10760121de029c419b6776a74485bfb35b80cdd794eb444a091b6da1458"),
    "gsm8k_test": ("gsm8k", True, 600, "gsm8k-{}", "GSM8K test, MIT",
                   "c32f479ed7a8237cfa2746e100dd9a6da78430ca1e61367739a11fb2018fff68"),
}  # fmt: skip


def lines(name, held_out, number, form, source):
    """The rows of one file, as JSON."""
    found = list(enumerate(from_hub(name, held_out)[:number]))
    if name == "web_questions":
        found.sort(key=lambda pair: (pair[0] % 20 == 0, pair[0] % 5 == 4))  # what is equal stays in order
    for i, q in found:
        question = q.question[0].upper() + q.question[1:] if name == "web_questions" else q.question
        answers = [a.replace(",", "") for a in q.answers] if name == "gsm8k" else q.answers
        row = {"id": form.format(i), "question": question, "answers": answers, "source": source}
        yield json.dumps(row, ensure_ascii=False) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="questions", help="folder to write (default: %(default)s)")
    out = Path(parser.parse_args().out)
    out.mkdir(parents=True, exist_ok=True)
    for file, (*how, sha256) in SETS.items():
        path = out / f"{file}.jsonl"
        if not path.exists():
            path.write_text("".join(lines(*how)), encoding="utf-8", newline="\n")
        same = hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        print(f"{path}: {'same as the published ones' if same else 'other questions than the published ones'}")


if __name__ == "__main__":
    main()

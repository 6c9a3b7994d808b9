"""What happens at night: kills, Ctrl-C, full disks. All of it on a toy world whose models learn little."""

import contextlib
import functools
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

import calunc
import toy

KILLS = 50
FLAGS = (
    "--platt-questions 20 --train-questions 40 --test-questions 20 --ood-questions 20 --samples 3 --sample-batch 12 "
    "--questions 4 --rollouts 4 --warmup 3 --steps 12 --rank 2 --resamples 20 --baselines stated,zero-shot,p-true"
).split()
# seconds are in them
MEASURED = {"environment.json", "seconds.jsonl", "stages.json", "report.json", "report.md", "report.html"}


def pipeline(folder, said):
    """All of the toy pipeline, its language model trained for five steps only, in a process of its own."""
    torch.set_num_threads(1)
    toy.train = functools.partial(toy.train, steps=5)
    with open(said, "w") as file, contextlib.redirect_stdout(None), contextlib.redirect_stderr(file):
        code = calunc.main(["--out", str(folder), *FLAGS])
    sys.exit(code)


@pytest.fixture(scope="module")
def start():
    """(folder, file for what it says) -> the pipeline as a process; torch is imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["compare", "stages", "calunc", "test_faults"])

    def start(folder, said):
        process = context.Process(target=pipeline, args=(folder, said))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A run that nothing happened to, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("first", "whole"):  # the first one also starts the server
        begin = time.perf_counter()
        process = start(folder / name, folder / "said")
        process.join()
        assert process.exitcode == 0, (folder / "said").read_text()
    return folder / "whole", time.perf_counter() - begin


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def unmeasured(report):
    """A report without seconds, and without the work, which is that of the last call."""
    report = json.loads((report / "report.json").read_text())
    for name in ("stages", "environment"):
        del report[name]
    for row in report["cost"].values():
        del row["seconds"]
    return report


def assert_equal(folder, other):
    assert files(folder) == files(other)
    for name in files(other) - MEASURED:  # the adapter names the folder of its model
        found = (folder / name).read_bytes().replace(str(folder).encode(), str(other).encode())
        assert found == (other / name).read_bytes(), name
    assert unmeasured(folder) == unmeasured(other)


def test_runs_that_are_killed_at_any_moment_end_as_if_they_had_not_been(start, whole, tmp_path):
    folder, seconds = whole
    rng, kills, out, said = random.Random(0), 0, tmp_path / "0", tmp_path / "said"
    while kills < KILLS or out.exists():
        process = start(out, said)
        process.join(rng.uniform(0, seconds) if kills < KILLS else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0, said.read_text()
            assert_equal(out, folder)
            out = out.with_name(str(int(out.name) + 1))


def test_ctrl_c_keeps_what_is_finished_and_says_so(start, whole, tmp_path):
    out, said = tmp_path / "run", tmp_path / "said"
    process = start(out, said)
    while process.is_alive() and not (out / "metrics.jsonl").exists():  # in the midst of stage 3
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    text = said.read_text()
    assert text.endswith("stopped: what is finished is kept, and the same command goes on from there\n")
    assert "Traceback" not in text and (out / "targets.jsonl").exists()
    process = start(out, said)
    process.join()
    assert_equal(out, whole[0])


def test_ctrl_c_is_heard_though_a_library_swallows_it(monkeypatch, capsys):
    """As a bare `except` does, which is common where something is imported."""

    def swallow(args):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        time.sleep(20)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(calunc, "ask", swallow)
    begin = time.perf_counter()
    assert calunc.main(["ask", "x"]) == 130 and time.perf_counter() - begin < 10
    assert capsys.readouterr().err.startswith("stopped: ")
    assert signal.getsignal(signal.SIGINT) is before and signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.fixture
def disk(tmp_path):
    """(megabytes) -> a folder that holds no more."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size):
        how = f"size={int(size * 1024)}k" + (",remount" if folder.is_mount() else "")
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", folder], capture_output=True, text=True)
        if made.returncode and not folder.is_mount():
            pytest.skip("only an administrator may mount a small disk")
        assert made.returncode == 0, made.stderr
        return folder

    yield resize
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_sentence_and_loses_nothing_that_was_finished(start, whole, disk, tmp_path):
    """The disk gets larger and larger, until there is enough room."""
    stages, sizes = [], (1, 2, 2.5, 2.75, 3, 3.25, 3.5, 3.75, 4, 5, 6)
    for size in sizes:
        out = disk(size) / "run"
        process = start(out, tmp_path / "said")
        process.join()
        said = (tmp_path / "said").read_text()
        if process.exitcode == 0:
            break
        assert process.exitcode == 2 and "Traceback" not in said
        error = said[said.index("error: ") :]
        assert "No space left on device" in error and error.count("\n") == 1
        done = list(json.loads((out / "stages.json").read_text())) if (out / "stages.json").exists() else []
        assert done[: len(stages)] == stages
        stages = done
    assert_equal(out, whole[0])

"""infra/progress.py by a clock that the test moves: what is shown where, and what is said of the time that is left."""

import gc
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Config

from infra import parallel, progress
from infra.folder import STAGES, Run
from settings import TOY

ROOT = Path(progress.__file__).parent.parent


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.fixture
def clock(monkeypatch):
    """(terminal) -> what is written to stderr; clock.wait(seconds)"""

    def clock(terminal=False):
        monkeypatch.setattr("sys.stderr", Stream(terminal))
        return sys.stderr

    now = [10.0**9]
    clock.wait = lambda seconds: now.append(now[-1] + seconds)
    monkeypatch.delenv("CI", raising=False)
    for module in ("tqdm.std", "infra.progress"):
        monkeypatch.setattr(f"{module}.time", lambda: now[-1])
    for name, value in {"lines": progress.Lines(), "ahead": {}, "spent": []}.items():
        monkeypatch.setattr(progress.Bar, name, value)
    progress.Bar.lines.last = now[-1]
    return clock


def loop(clock, name, seconds, items=10, **kwargs):
    """-> the loop's bar, after each item and at its end"""
    with progress.Bar(desc=name, total=items, disable=False, **kwargs) as bar:
        for _ in range(bar.initial, items):
            clock.wait(seconds)
            bar.update()
            yield bar
    yield bar


@pytest.mark.parametrize("ci", [False, True])
def test_a_log_gets_a_line_every_30_seconds_whatever_the_number_of_loops(clock, monkeypatch, ci):
    if ci:  # some give a terminal
        monkeypatch.setenv("CI", "true")
    err = clock(terminal=ci)
    for seconds, items in ((0.25, 4000), (3, 20), (0.01, 5), (700, 2)):  # 1000 s, 60 s, 50 ms, 1400 s
        list(loop(clock, f"items of {seconds} s", seconds, items))
    lines = err.getvalue().split("\n")
    assert lines.pop() == "" and "\r" not in err.getvalue() and 30 <= len(lines) <= 1060 / 30 + 2
    assert all(re.fullmatch(r"items of [\d.]+ s: +\d+% \d+/\d+ \[.*\]", line) for line in lines), lines
    assert len([line for line in lines if "of 0.25 s" in line]) == 1000 // 30


def test_a_terminal_gets_a_bar(clock):
    err = clock(terminal=True)
    list(loop(clock, "training", 0.5, 40))
    last = err.getvalue().split("\r")[-1]
    assert err.getvalue().count("\r") >= 40 and err.getvalue().count("\n") == 1
    assert re.match(r"training: 100%\|(█+|#+)\| 40/40 ", last)


def test_a_bar_that_is_half_made_ends_in_silence(clock, monkeypatch):
    """As Ctrl-C leaves it."""
    clock()
    bar = progress.Bar.__new__(progress.Bar)
    bar.close()
    monkeypatch.setattr(progress.Bar, "refresh", lambda *_, **__: bar.missing)
    with pytest.raises(AttributeError, match="missing"):
        progress.Bar(range(3), desc="x", disable=False)
    gc.collect()
    assert not progress.Bar.spent


def test_nothing_is_said_where_nothing_is_wanted():
    code = "import sys; from infra.progress import Bar; Bar.lines.last = 0; print(sum(Bar(range(9), desc='x')))"
    for disabled in ("", "1"):
        env = os.environ | {"TQDM_DISABLE": disabled}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.stdout == "36\n" and bool(done.stderr) == (not disabled)


def test_the_time_left_is_that_of_all_loops(clock):
    """Tokens 100, 300 and 50 at 5 a second, then at 15; nothing before a speed is known, and the metrics stay."""
    clock()
    progress.Bar.ahead |= {"a": 100, "b": 300, "skipped": 1000, "c": 50}
    found = []
    for bar in loop(clock, "a", 2):
        bar.set_postfix_str("loss=0.5")
        found.append((bar.left(), bar.format_dict["postfix"]))
    left = [found[i][0] for i in (0, 1, 2, 4, 9)]
    assert left == [None, None, pytest.approx(14 + 1350 / 5), pytest.approx(10 + 1350 / 5), pytest.approx(1350 / 5)]
    assert found[0][1] == "loss=0.5" and found[4][1] == "loss=0.5, about 04:40 left in all"
    assert [bar.left() for bar in loop(clock, "d", 2)] == [None] * 11  # nobody expected it
    b = [bar.left() for bar in loop(clock, "b", 2)]
    assert b[0] == pytest.approx(18 + 1050 / (130 / 22)) and b[4] == pytest.approx(10 + 1050 / (250 / 30))
    assert [bar.left() for bar in loop(clock, "c", 1, 5)][2] == pytest.approx(2)  # what was skipped is not waited for


def test_what_an_earlier_call_has_done_is_no_speed_of_this_one(clock):
    clock()
    progress.Bar.ahead |= {"a": 100, "b": 300}
    found = [bar.left() for bar in loop(clock, "a", 3, initial=6)]
    assert found[1] == pytest.approx(2 * 3 + 300 / (20 / 6)) and found[3] == pytest.approx(300 / (40 / 12))


@pytest.mark.parametrize("model, parts, seconds", [
    ("toy", {"platt": 100, "train": 1400, "test": 600, "unseen families": 600},  # docs/cost.md, results/toy
     {"toy: language model": 62, "sampling answers": 1.96, "training": 80.5}),
    ("smollm2", {"platt": 300, "train": 3600, "test": 1100, "unseen": 1600}, None),
])  # fmt: skip
def test_the_tokens_of_the_loops_are_about_their_seconds(clock, tmp_path, model, parts, seconds):
    """As they were measured: the longest is the longest, and none is wrong by more than a factor of three."""
    config = Config(**TOY, kl=0.03) if model == "toy" else Config(model="x", steps=150, questions=24, reflection=0)
    if not seconds:
        report = json.loads((ROOT / "results" / "smollm2-arms" / "report.json").read_text())["seconds"]
        before, after = report["samples-0"], report["brier-reward-rlcr-0"]
        seconds = {"sampling answers": before["sample"], "embedding the answers": before["calibrate"],
                   "training": after["train"], "confidence: untrained, trained, expected": after["eval"]}  # fmt: skip
    progress.expect(config, Run(tmp_path), STAGES, [part for part, n in parts.items() for _ in range(n)])
    tokens = {name: progress.Bar.ahead[name] for name in seconds}
    speed = sum(tokens.values()) / sum(seconds.values())
    assert all(1 / 3 < seconds[name] * speed / tokens[name] < 3 for name in seconds), (tokens, seconds, speed)


def test_a_run_has_the_loops_that_are_expected(call, finished, clock, monkeypatch, tmp_path):
    """Also one that goes on with what an interrupted call has sampled, which then begins with that."""
    seen, keep, make = [], parallel.keep, progress.Bar.__init__

    def begin(bar, items=None, **kwargs):
        assert kwargs["desc"] in progress.Bar.ahead
        make(bar, items, **kwargs)
        seen.append((kwargs["desc"], kwargs.get("initial", 0), bar.total, list(progress.Bar.ahead)))

    def interrupt(file, found):
        if keep(file, found) or len(list(tmp_path.glob("run/.sample*"))) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress.Bar, "__init__", begin)
    monkeypatch.setattr(parallel, "keep", interrupt)
    assert call(tmp_path / "run") == 130
    assert [one[:3] for one in seen] == [("pilot", 0, 2), ("sampling answers", 0, 3)]
    seen.clear()
    monkeypatch.setattr(parallel, "keep", keep)
    assert call(tmp_path / "run") == 0
    assert [one[:3] for one in seen] == [
        ("pilot", 0, 2), ("sampling answers", 2, 3), ("embedding the answers", 0, 1), ("training", 0, 3),
        ("confidence: untrained, trained, expected", 0, 1), ("confidence: alone", 0, 1),
    ]  # fmt: skip
    assert all(ahead == [name for name, *_ in seen[i + 1 :]] for i, (*_, ahead) in enumerate(seen))
    config = Run(finished).config()
    progress.expect(config, Run(finished), ["eval"], ["test"])
    assert list(progress.Bar.ahead) == ["confidence: untrained, trained, expected", "confidence: alone"]

"""What the benchmarks compute beside time: rows, ratios, predictions. TRL, a peer, is not installed here."""

import json
from dataclasses import replace

import pytest
import torch

from bench import __main__ as report
from bench import growth, prediction, setting
from bench.prediction import Recorder, duration, sizes
from cost import Size
from lm import completion_logprobs
from lora import adapter, add_lora


def test_the_sizes_of_published_models():
    """Parameters outside the embedding, as the model cards give them: 1.31B and 6.53B for Qwen2.5."""
    found = sizes()
    norms = {"135M": 576 * 61, "1.5B": 1536 * 57, "7B": 3584 * 57}
    biases = {"135M": 0, "1.5B": 28 * (1536 + 2 * 256), "7B": 28 * (3584 + 2 * 512)}
    total = {name: s.weights + norms[name] + biases[name] for name, s in found.items()}
    assert total["135M"] + found["135M"].head == 134_515_008  # SmolLM2-135M with its tied embedding
    assert total["1.5B"] / 1e9 == pytest.approx(1.31, abs=0.005)
    assert total["7B"] / 1e9 == pytest.approx(6.53, abs=0.005)
    assert found["7B"].head == 152_064 * 3584
    assert found["7B"].attention == 28 * 3584
    assert found["135M"].adapter == 16 * 30 * (576 * 4 + (576 + 192) * 2 + 3 * (576 + 1536))


def test_a_replay_with_the_same_size_is_the_work_itself(load):
    lm = replace(load("llama"), work=Recorder())
    add_lora(lm, rank=3)
    with adapter(lm, False), torch.no_grad():
        completion_logprobs(lm, [[1, 2, 3], [1, 2, 4]], [[[5, 6]], [[7, 8]]])
    completion_logprobs(lm, [[1, 2, 3], [1, 2, 4]], [[[5, 6]], [[7, 8]]])[0].sum().backward()
    flops = lm.work.flops
    assert lm.work.replay(Size.of(lm.model)) == flops
    bigger = replace(Size.of(lm.model), weights=2 * Size.of(lm.model).weights)
    assert flops < lm.work.replay(bigger) < 2 * flops


def test_the_table_scales_with_the_questions():
    calls = [("forward", False, 100, 1000, 10), ("backward", True, 100, 1000, 10)]
    piece = dict(calls=calls, seconds=2.0, flops=4e11)
    lines = prediction.table({"questions": 5, "stage 1": piece, "stage 3": piece}, memory=24)
    assert len(lines) == 2 + 6
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:]]
    size = sizes()["7B"]
    flops = Recorder(calls=calls).replay(size) / 5 * 20_000
    assert cells[-1] == [
        "7B", "20,000", *[f"{flops / 1e15:,.2f}", "does not fit", duration(flops / prediction.GPU)] * 2,
    ]  # fmt: skip
    assert cells[-3][3] == duration(Recorder(calls=calls).replay(sizes()["1.5B"]) / 5 * 20_000 / 2e11)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "< 1 s"), (5.4, "5 s"), (119, "119 s"), (121, "2 min"), (7300, "2 h"), (4e5, "5 d")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_turns_alternate_and_the_first_call_is_not_counted():
    called = []
    functions = {"a": lambda: called.append("a"), "b": lambda: called.append("b")}
    seconds = setting.take_turns(functions, repetitions=2)
    assert called == ["a", "b"] * 3
    assert {name: len(s) for name, s in seconds.items()} == {"a": 2, "b": 2}
    setting.take_turns(functions, repetitions=1, warm_up=False)
    assert called == ["a", "b"] * 4


def test_a_ratio_is_the_median_over_turns():
    assert setting.ratios([2, 30, 8], [1, 10, 1]) == (3, 2, 8)
    row = setting.compared("work", "≥ 2x", {"ours": [1, 10, 1], "peer": [2, 30, 8]}, "note")
    assert (row["ratio"], row["ours"], row["peer"]) == ((3, 2, 8), [1, 10, 1], [2, 30, 8])


def test_growth_is_shown_for_each_doubling(tmp_path):
    same = {"5": 1.0, "10": 1.0, "20": 1.0, "40": 1.0}
    found = {"questions": {"8": 1.0, "16": 2.5, "32": 5.0, "64": 10.0}, "samples": same}
    cells = "| questions | 8: 1.00 s | 16: 2.50 s | 32: 5.00 s | 64: 10.00 s | 2.50, 2.00, 2.00 |"
    assert growth.lines(found)[2] == cells
    growth.draw(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_a_line_has_the_ratio_first():
    row = setting.compared("work", "≥ 2x", {"ours": [1, 1, 1], "peer": [2.0, 3.0, 8.0]}, "note")
    assert report.line(row) == "| work | ≥ 2x | **3.0×** (2.0 to 8.0) | met | 1 s | 3 s | note |"
    share = dict(work="peak", target="≤ 1/2", share=0.6, cells=["1.5 GiB", "2.5 GiB"])
    assert report.line(share) == "| peak | ≤ 1/2 | **0.60** | **missed** | 1.5 GiB | 2.5 GiB |  |"
    seconds = dict(work="help", target="< 1 s", ours=[0.1, 0.3, 0.2])
    assert report.line(seconds) == "| help | < 1 s | **0.20 s** | met | 0.2 s |  |  |"


def test_the_numbers_of_the_committed_page_are_those_of_its_json():
    found = json.loads((setting.ROOT / "results" / "bench.json").read_text())
    assert (setting.ROOT / "results" / "bench.md").read_text() == report.page(found)
    readme = (setting.ROOT / "README.md").read_text()
    assert "\n".join(found["prediction"]) in readme

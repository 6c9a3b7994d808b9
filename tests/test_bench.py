"""What the benchmarks compute beside time: operations, rows, ratios, predictions."""

import json

import pytest
import torch

from bench import __main__ as report
from bench import gpu, growth, language, prediction, setting
from bench.prediction import counted, duration, predicted, size, size_of
from lm import completion_logprobs
from report.build import environment
from settings import RECIPES


def test_the_sizes_of_published_models():
    """Parameters outside the embedding, as the model cards give them: 1.31B and 6.53B for Qwen2.5."""
    found = {name: size(name) for name in prediction.SHAPES}
    norms = {"135M": 576 * 61, "1.5B": 1536 * 57, "7B": 3584 * 57}
    biases = {"135M": 0, "1.5B": 28 * (1536 + 2 * 256), "7B": 28 * (3584 + 2 * 512)}
    total = {name: s.maps + norms[name] + biases[name] for name, s in found.items()}
    assert total["135M"] + found["135M"].head == 134_515_008  # SmolLM2-135M with its tied embedding
    assert total["1.5B"] / 1e9 == pytest.approx(1.31, abs=0.005)
    assert total["7B"] / 1e9 == pytest.approx(6.53, abs=0.005)
    assert found["7B"].head == 152_064 * 3584 and found["7B"].attention == 28 * 3584


def test_operations_are_those_of_the_closed_form_and_grow_with_the_model(load):
    """2 a weight and token, 4 a pair of tokens; what is counted for one model predicts what is counted for another."""
    small, large = load("llama"), load("llama", layers=4, width=32)
    ids = torch.arange(4, 15)[None]
    of, found = size_of(small.model), counted(lambda: small.model(input_ids=ids, use_cache=False), small.model)
    assert found["maps"] == 2 * of.maps * 11 and found["head"] == 2 * of.head * 11
    assert found["attention"] == pytest.approx(4 * of.attention * 11 * 11, rel=0.05)  # and the angles of positions

    def work(lm):
        lm.model.requires_grad_()
        prompts, said = [[1, 2, 3, 9, 9, 9, 9], [1, 2, 4]], [[[5, 6, 7], [5, 8]], [[7, 8], [9]]]
        return counted(lambda: completion_logprobs(lm, prompts, said)[0].sum().backward(), lm.model)

    want = sum(work(large).values())
    assert predicted(work(small), of, size_of(large.model)) == pytest.approx(want, rel=0.02)


def test_the_table_scales_with_the_questions():
    piece = dict(flops={"maps": 3e11, "attention": 1e10, "head": 9e10}, seconds=2.0)
    lines = prediction.table({"questions": 5, "stage 1": piece, "stage 3": piece}, memory=24)
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0][:5] == ["135M", "2,000", "0.16", "13 min", "2 s"] and len(cells) == 6
    flops = predicted(piece["flops"], size("135M"), size("7B")) / 5 * 20_000
    assert cells[-1] == [
        "7B", "20,000", *[f"{flops / 1e15:,.2f}", "does not fit", duration(flops / prediction.GPU)] * 2,
    ]  # fmt: skip


def test_turns_alternate_and_the_first_call_is_not_counted():
    called = []
    functions = {"a": lambda: called.append("a"), "b": lambda: called.append("b")}
    seconds = setting.take_turns(functions, repetitions=2)
    assert called == ["a", "b"] * 3 and {name: len(s) for name, s in seconds.items()} == {"a": 2, "b": 2}


def test_a_row_has_the_median_ratio_of_the_turns_first():
    row = setting.compared("work", "≥ 2x", {"ours": [1, 10, 1], "peer": [2.0, 30.0, 8.0]}, "note")
    assert report.line(row) == "| work | ≥ 2x | **3.0×** (2.0 to 8.0) | met | 1 s | 8 s | note |"
    share = dict(work="peak", target="≤ 1/2", share=0.6, cells=["1.5 GiB", "2.5 GiB"])
    assert report.line(share) == "| peak | ≤ 1/2 | **0.60** | **missed** | 1.5 GiB | 2.5 GiB |  |"
    found = {name: {"seconds": [s], "peak": s} for name, s in (("shared", 1.0), ("plain", 2.0), ("peer", 30.0))}
    ratios = [row["ratio"][0] if "ratio" in row else row["share"] for row in language.step_rows(found)]
    assert ratios == pytest.approx([30, 1 / 30, 15, 1 / 15])


def test_what_a_gpu_did_is_in_the_documents(monkeypatch):
    found = json.loads((setting.ROOT / "results" / "gpu.json").read_text())
    page = gpu.page(found)
    assert page in (setting.ROOT / "docs" / "cost.md").read_text()
    each, steps = found["recipe"]["train"]["seconds"], RECIPES["paper"]["steps"]
    assert f"| {each:.2f} s a step |" in page and f"| {each * steps / 3600:.1f} h |" in page
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the card {device}")
    assert environment(torch.device("cuda", 0))["device"] == "the card cuda:0" and environment()["device"] == "cpu"


def test_growth_is_shown_for_each_doubling(tmp_path):
    found = {"questions": {"8": 1.0, "16": 2.5, "32": 5.0, "64": 10.0}, "samples": {"5": 1.0, "10": 1.0}}
    cells = "| questions | 8: 1.00 s | 16: 2.50 s | 32: 5.00 s | 64: 10.00 s | 2.50, 2.00, 2.00 |"
    assert growth.lines(found)[2] == cells
    growth.draw(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"

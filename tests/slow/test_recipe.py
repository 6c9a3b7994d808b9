"""`--recipe paper` through all stages, on narrow weights of Qwen2.5's shape and rows as the real data sets have them.

What is smaller is given by flags; everything else is as the recipe says.
"""

import json
import string

import datasets
import pytest
import transformers
from helpers import randomise, rows

import calunc
from infra.grading import grade
from report.tables import METHODS
from settings import RECIPES, option

NEXT = {":": " ", " ": "01", "01": ".\n", ".": string.digits, string.digits[2:]: "\n"}  # characters -> what follows
WORDS = string.ascii_letters + string.digits + string.punctuation + " \n"
SMALLER = (
    "--platt-questions 8 --train-questions 12 --test-questions 10 --ood-questions 6 --samples 4 --sample-batch 8 "
    "--steps 2 --questions 4 --rollouts 4 --reflection 6 --thought-tokens 8 --answer-tokens 4 --resamples 20"
).split()
TRIVIA = {"question_source": "http://q", "entity_pages": {"title": []}, "search_results": {"title": []}}
ANSWER = {"normalized_value": "x", "normalized_aliases": ["x"], "matched_wiki_entity_name": "", "type": "Numerical"}
LOADED = {  # path, config, split -> rows with the fields of the hub
    ("mandarjoshi/trivia_qa", "rc.nocontext", "train"):
        [TRIVIA | {"question": f"Which number is {i} in Roman?", "question_id": f"tc_{i}", "answer": ANSWER | {
            "value": "X", "aliases": ["X", *(f"{n / 10:g}" for n in range(20) if i % 2)]}} for i in range(30)],
    ("google-research-datasets/nq_open", None, "train"):
        [{"question": f"when did the {i}th thing happen", "answer": ["19", "1850s"]} for i in range(30)],
    ("openai/gsm8k", "main", "test"):
        [{"question": f"Tom has {i} apples and eats {i}. How many are left?",
          "answer": f"{i} - {i} = <<{i}-{i}=0>>0 apples are left.\n#### 0"} for i in range(10)],
}  # fmt: skip


@pytest.fixture
def save(tmp_path, make_tokenizer):
    """(name, class, its configuration, its tokenizer's) -> a folder of random weights"""

    def save(name, kind, of_tokenizer, **config):
        config |= dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
        model, tokenizer = kind(kind.config_class(**config)), make_tokenizer(characters=WORDS, **of_tokenizer)
        randomise((p for p in model.parameters() if p.ndim > 1), scale=0.3)
        if kind is transformers.Qwen2ForCausalLM:  # mostly goes on with what NEXT has, so that it often states a number
            words, head = model.model.embed_tokens.weight.data, model.lm_head.weight.data
            words[:, 0], head[:, 0], head[: len(tokenizer), 0] = 8.0, -4.0, 0.0  # most of its words are never written
            for feature, (before, after) in enumerate(NEXT.items(), 1):
                words[:, feature] = 0.0
                words[tokenizer.convert_tokens_to_ids([*before]), feature] = 8.0
                head[tokenizer.convert_tokens_to_ids([*after]), feature] = 5.0
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def test_the_recipe_of_the_paper_runs_to_the_end(save, tiny, tmp_path, monkeypatch, capsys):
    asked, out = [], tmp_path / "run"
    monkeypatch.setattr(datasets, "load_dataset", lambda path, config, split: datasets.Dataset.from_list(
        LOADED[asked.append((path, config, split)) or asked[-1]]))  # fmt: skip
    qwen = save("qwen", transformers.Qwen2ForCausalLM, {"chat": True}, vocab_size=151936, num_key_value_heads=2,
                max_position_embeddings=32768, tie_word_embeddings=False, eos_token_id=2, bos_token_id=1)  # fmt: skip
    mpnet = save("mpnet", transformers.MPNetModel, {"wrap": True}, vocab_size=200, max_position_embeddings=64)
    flags = ["--model", qwen, "--embedder", mpnet, "--judge", str(tiny("llama")), *SMALLER]
    assert calunc.main(["--recipe", "paper", *flags, "--out", str(out)]) == 0
    said, given = capsys.readouterr().out, dict(zip(flags[::2], flags[1::2], strict=True))
    report, samples = json.loads((out / "report.json").read_text()), rows(out / "samples.jsonl")
    for name, value in RECIPES["paper"].items():  # printed with who chose it
        assert f"\n{option(name)} {given.get(option(name), value)}  (" in f"\n{said}"
        assert option(name) in given or report["config"][name] == value
    assert "--statement uncertainty  (paper)\n" in said and "--lr 2e-05  (our choice: not stated" in said
    assert "--rollouts 4  (our choice; paper: 16)\n" in said and set(asked) == set(LOADED)
    assert list(report["sets"]) == ["test", "gsm8k"]
    assert {s["source"] for s in samples} == {"trivia_qa", "nq_open", "gsm8k"}
    for s in report["sets"].values():  # of the paper's table
        for row in ("alone", "untrained", "trained", "target"):
            assert {"ece", "auroc", "spearman"} <= s["methods"][METHODS[row]].keys()
    assert any(s["thought"] for s in samples) and {0, 1} == {grade(s["answer"], s["answers"]) for s in samples}
    log, predictions = rows(out / "metrics.jsonl"), rows(out / "predictions.jsonl")
    assert len(log) == 2 and min(record["malformed"] for record in log) < 1  # some say a number
    assert any(r["reflection, trained"] for r in predictions)
    assert any(r["trained"] is not None for r in predictions)

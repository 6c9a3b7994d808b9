"""A trained run where calunc is not: in peft, in transformers, and behind a server, as docs/serving.md has it.

All with reflections, of a small model that has learned to write them, and end them in each of the usual ways.
"""

import contextlib
import functools
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import peft
import pytest
import tokenizers
import torch
import transformers
from helpers import SMALL, write

import calunc
import data
import lm as language
from beyond import exact

PAGE = (Path(calunc.__file__).parent / "docs" / "serving.md").read_text(encoding="utf-8")
CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # much as Qwen cuts a text
COLOURS = "red blue green black white pink".split()
ENDS = (".\n", ".\n\n", "<|end|>", " " + "because " * 40)  # of a reflection; the last one is cut


THINGS = "coal snow grass sky blood gold milk rust jade ink sand clay".split()


def asked(i):
    return f"what colour is {THINGS[i]}?"


def told(i):
    """What the model learns to write: its answer, its reflection, its confidence in percent."""
    kind = i % 6
    return COLOURS[kind], f" {COLOURS[kind - 1]} things{' are rare' * (kind % 2)}{ENDS[kind % 4]}", 15 * kind + 11


@pytest.fixture(scope="module", autouse=True)
def one_example():
    """Of five, for short prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "EXAMPLES", data.EXAMPLES[:1])
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder: a llama of 0.1M parameters that answers 12 questions in both forms, and states its confidence."""
    folder = tmp_path_factory.mktemp("base")
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    core.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|end|>", "<|start|>", "<|bos|>"]
    text = [" ".join(map(str, data.EXAMPLES)), data.ASK, data.REFLECT, data.STATEMENTS["confidence"].ask]
    text = [*text, "Question: Answer: Reflection: Confidence: user assistant \n\n .\n"] * 3
    text += [asked(i) + told(i)[1] for i in range(12)]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(text, tokenizers.trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    core.post_processor = tokenizers.processors.TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", 2)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", bos_token="<|bos|>")
    tokenizer.chat_template = "{{ bos_token }}" + CHAT
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=2048, bos_token_id=2, eos_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    lm = language.LM(transformers.LlamaForCausalLM(config), tokenizer, "base")
    found = []
    for style in ("fewshot", "chat"):
        prompt = data.Prompt(lm, style, data.EXAMPLES, reflection=32)
        for i in range(12):
            answer, thought, confidence = told(i)
            thought = lm.proceed(thought)[:32]
            context, turn = prompt.second_turn(asked(i), answer)
            number = lm.proceed(f" {confidence}%\n")
            reply = f" {answer}\n" if style == "fewshot" else f"{answer}\n"
            found.append((prompt.first_turn(asked(i)), lm.proceed(reply)))
            found.append((context + turn, thought + prompt.forced(thought[-1], "Confidence:") + number))
    adam = torch.optim.AdamW(lm.model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1, 0.05, 400)
    for _ in range(400):
        batch = [found[j] for j in torch.randint(len(found), (12,)).tolist()]
        longest = max(len(p + c) for p, c in batch)
        ids = torch.tensor([p + c + [0] * (longest - len(p + c)) for p, c in batch])
        labels = torch.tensor([[-100] * len(p) + c + [-100] * (longest - len(p + c)) for p, c in batch])
        loss = lm.model(input_ids=ids, labels=labels).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    lm.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """(style, where the adapter is on) -> the folder of a finished run; each once."""

    @functools.cache
    def run(style, adapter):
        folder = tmp_path_factory.mktemp(f"{style}-{adapter}")
        questions = [{"question": asked(i), "answers": [told(i // 2 * 2)[0]]} for i in range(12)]  # half are wrong
        flags = ["--dataset", str(write(folder / "things.jsonl", questions)), "--prompt", style, "--adapter", adapter]
        sizes = "--platt-questions 2 --train-questions 6 --test-questions 4 --answer-tokens 16 --reflection 32".split()
        flags += [*SMALL, *sizes, "--warmup", "8", "--lr", "1e-2"]
        assert calunc.main(["--model", str(base), "--out", str(folder / "run"), *flags]) == 0
        return folder / "run"

    return run


# ---- the same confidences in peft and in transformers ------------------------------------------------------------


def greedy(model, tokenizer, ids, tokens, ends):
    """By whole passes without a cache."""
    said = []
    while len(said) < tokens:
        with torch.no_grad():
            said.append(int(model(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax()))
        if said[-1] == tokenizer.eos_token_id or any(c in tokenizer.decode(said[-1:]) for c in ends):
            break
    return said


@torch.no_grad()
def expected(model, ids, values, forms):
    """The mean of all numbers, weighted by their probability after a prompt."""
    longest = max(map(len, forms))
    batch = torch.tensor([ids + form + [0] * (longest - len(form)) for form in forms])
    logp = model(input_ids=batch).logits[:, len(ids) - 1 : -1].log_softmax(-1)
    p = torch.stack([x[range(len(form)), form].sum() for x, form in zip(logp, forms, strict=True)]).exp()
    return float(p @ torch.tensor(values) / p.sum())


@pytest.mark.parametrize("style", ["fewshot", "chat"])
@pytest.mark.parametrize("adapter, where", [
    ("turn", "peft"), ("everywhere", "peft"), ("everywhere", "transformers"), ("everywhere", "merged"),
])  # fmt: skip
def test_reflections_and_confidences_are_the_same_elsewhere(style, adapter, where, base, run, tmp_path):
    folder, auto = run(style, adapter), transformers.AutoModelForCausalLM
    ours, model = calunc.CalibratedLM(folder, readout="stated"), auto.from_pretrained(base).eval()
    theirs = auto.from_pretrained(folder / "adapter").eval() if where == "transformers" else model
    if where == "peft":
        theirs = peft.PeftModel.from_pretrained(auto.from_pretrained(base), folder / "adapter").eval()
    if where == "merged":
        assert calunc.main(["merge", "--run", str(folder), "--out", str(tmp_path / "merged")]) == 0
        theirs = auto.from_pretrained(tmp_path / "merged").eval()
    prompt, tokenizer, seen, means = ours.prompt, ours.model.tokenizer, [], []
    both = [lm.ask_all([asked(i) for i in range(6)]) for lm in (ours, calunc.CalibratedLM(folder))]
    for answer, mean in zip(*both, strict=True):
        text = greedy(model, tokenizer, prompt.first_turn(asked(len(seen))), 16, "\n")
        assert tokenizer.decode(text, skip_special_tokens=True).strip() == answer.text
        ids = sum(prompt.second_turn(asked(len(seen)), answer.text), [])
        seen.append(greedy(theirs, tokenizer, ids, 32, "\n"))
        assert tokenizer.decode(seen[-1], skip_special_tokens=True).strip() == answer.reflection
        ids += seen[-1] + prompt.forced(seen[-1][-1], "Confidence:")
        number = tokenizer.decode(greedy(theirs, tokenizer, ids, 6, "\n%"))
        assert data.parse_confidence("Confidence:" + number) == answer.confidence
        means.append([expected(m, ids, *exact.numbers(ours.model, prompt.statement)) for m in (theirs, model)])
        if mean.confidence is not None:  # numbers have little probability after some reflections
            assert means[-1][0] == pytest.approx(mean.confidence, abs=1e-4)
    ends = [tokenizer.decode(thought[-1:]) for thought in seen]
    assert len({end if "\n" in end else end == "<|end|>" for end in ends}) > 1, ends  # lines, a token of two, eos, cut
    assert max(abs(trained - untrained) for trained, untrained in means) > 1e-3  # the adapter does something


# ---- transformers serve ------------------------------------------------------------------------------------------


def blocks(section, language):
    """The code of a section of the page."""
    (text,) = re.findall(rf"^## {section}.*?(?=^## |\Z)", PAGE, re.M | re.S)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of the server that the page starts; it is offline, and ends with the tests."""
    (command,) = [line for line in blocks("transformers", "bash")[0].splitlines() if line.startswith("transformers ")]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    log = tmp_path_factory.mktemp("server") / "log"
    words = [str(Path(sys.executable).with_name("transformers")), *command.replace("8000", port).split()[1:]]
    with log.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5)
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("style", ["fewshot", "chat"])
def test_what_the_page_says_of_transformers_serve(style, base, run, server, tmp_path, monkeypatch):
    folder, merged = run(style, "everywhere"), tmp_path / "merged"
    monkeypatch.chdir(tmp_path)
    paths = {"runs/mine": folder, "http://localhost:8000": server, "models/mine": base, '"merged"': f'"{merged}"'}

    def ran(code):
        for ours, theirs in paths.items():
            code = code.replace(ours, str(theirs))
        exec(code, found)
        return found

    found, (write_turns, client) = {}, blocks("transformers", "python")
    merge = blocks("transformers", "bash")[0].splitlines()[0].split()
    assert merge[:2] == ["python", "calunc.py"]
    assert calunc.main([str(folder) if word == "runs/mine" else word for word in merge[2:]]) == 0
    ran(write_turns)
    ask, complete, used = ran(client)["ask"], found["complete"], []
    found["complete"] = lambda **request: used.append(request["model"]) or complete(**request)
    ours = calunc.CalibratedLM(folder, readout="stated").ask_all([asked(i) for i in range(6)])
    for i, answer in enumerate(ours):
        text, reflection, number = ask(asked(i))
        assert (text, reflection, data.parse_confidence(number)) == (answer.text, answer.reflection, answer.confidence)
    assert len({(a.reflection, a.confidence) for a in ours}) > 1
    assert used == [str(base), str(merged), str(merged)] * 6
    said = complete(model=str(base), prompt="Question:", max_tokens=1, logprobs=1)
    assert said.choices[0].text and said.choices[0].logprobs is None  # as the page says

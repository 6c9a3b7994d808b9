"""Sampling, scoring, training and using, with a real model, against what a user would otherwise run."""

import statistics
import time

import torch

import amp
import cost
import data
import entropy
import lm
import lora
import rl
import statements
from bench import grpo
from bench.setting import EMBEDDER, MODEL, compared, fewshot_questions, take_turns
from prefix import Read
from settings import Config

SAMPLES, ANSWER_TOKENS = 10, 16


def generate(model, prompts, stop, n, **kwargs):
    """n completions of each prompt by transformers, 8 prompts at a time. -> lists of ids, cut after a stop token"""
    found, tokenizer = [], model.tokenizer
    for i in range(0, len(prompts), 8):
        inputs = tokenizer.pad({"input_ids": prompts[i : i + 8]}, padding_side="left", return_tensors="pt")
        with torch.no_grad():
            out = model.model.generate(
                **inputs, num_return_sequences=n, max_new_tokens=ANSWER_TOKENS, eos_token_id=sorted(stop),
                pad_token_id=tokenizer.pad_token_id, **kwargs,
            )[:, inputs["input_ids"].shape[1] :].tolist()  # fmt: skip
        ends = [next((i + 1 for i, t in enumerate(row) if t in stop), len(row)) for row in out]
        found += [row[:end] for row, end in zip(out, ends, strict=True)]
    return found


UNTRUNCATED = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)


def sampling():
    """10 answers each to 64 few-shot questions, against transformers' generate(num_return_sequences=10)."""
    model = lm.load(MODEL)
    prompt, questions = fewshot_questions(model, 64)
    prompts = sorted((prompt.answer(q.question) for q in questions), key=len)
    stop, tokens = lm.stop_ids(model, "\n"), {}

    def peer():
        torch.manual_seed(0)
        tokens["peer"] = sum(map(len, generate(model, prompts, stop, SAMPLES, **UNTRUNCATED)))

    def ours():
        drawn = lm.sample(model, prompts, [1.0] * SAMPLES, ANSWER_TOKENS, stop, list(range(len(prompts))))
        tokens["ours"] = sum(len(c) for row in drawn for c in row)

    seconds = take_turns({"peer": peer, "ours": ours}, warm_up=False)
    each = {name: [s / tokens[name] for s in seconds[name]] for name in seconds}  # seconds a token
    row = compared("10 answers each to 64 few-shot questions, tokens per second, generate", "≥ 4x", each)
    return [row | dict(**seconds, note=f"{tokens['ours']} and {tokens['peer']} tokens")]


def scoring():
    """Log-probabilities and gradients of 4 prompts x 16 sampled completions, adapter on everywhere."""
    model = lm.load(MODEL)
    for p in lora.add_lora(model):
        p.data += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))  # B starts at zero
    prompt, questions = fewshot_questions(model, 4)
    prompts = [sum(prompt.confidence(q.question, q.answers[0]), []) for q in questions]
    drawn = lm.sample(model, prompts, [1.0] * 16, 6, lm.stop_ids(model, "\n%"), list(range(len(prompts))))
    found = {}

    def backward(name, logp):
        logp.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.model.parameters() if p.requires_grad])
        found[name] = found.get(name, 0) + gradient
        model.model.zero_grad()

    def peer():
        found.pop("peer", None)
        for p, group in zip(prompts, drawn, strict=True):  # 16 sequences at a time
            width = max(map(len, group))
            ids = torch.tensor([p + c + [0] * (width - len(c)) for c in group])
            mask = torch.tensor([[1] * len(c) + [0] * (width - len(c)) for c in group])
            logits = model.model(input_ids=ids, logits_to_keep=width + 1).logits[:, :-1]
            backward("peer", logits.log_softmax(-1).gather(2, ids[:, len(p) :, None])[..., 0] * mask)

    def ours():
        found.pop("ours", None)
        backward("ours", lm.completion_logprobs(model, prompts, drawn)[0])

    seconds = take_turns({"peer": peer, "ours": ours})
    error = (found["ours"] - found["peer"]).norm() / found["peer"].norm()
    work = "log-probabilities and gradients of 4 prompts × 16 completions, each prompt repeated"
    distinct = sum(len(set(map(tuple, group))) for group in drawn)
    return [compared(work, "≥ 3x", seconds, f"gradients within {error:.0e}, relative; {distinct} of 64 are distinct")]


def group_step():
    """One GRPO step, against TRL in batches of 16. TRL recomputes activations, its default; we take micro-batches."""
    return step_rows(grpo.measure({"ours": ["ours"], "peer": ["trl", "16", "on"]}, 5))


def step_rows(found):
    seconds = {name: found[name]["seconds"] for name in found}
    turns = "; ".join(", ".join(f"{s:.0f}" for s in seconds[name]) + f" s {name}" for name in ("ours", "peer"))
    work, note = "GRPO step, 12 prompts × 16 completions, TRL", f"adapter in the prompt: TRL's on, ours off. {turns}"
    return [compared(work, "≥ 4x", seconds, note), memory_row("the same: peak memory", found)]


def memory_row(work, found):
    ours, peer = found["ours"]["peak"], found["peer"]["peak"]
    return dict(work=work, target="≤ 1/2", share=ours / peer, cells=[f"{ours:.1f} GiB", f"{peer:.1f} GiB"])


def lean_step():
    """The same step against TRL in batches of 8, its default, once: for its memory."""
    found = grpo.measure({"ours": ["ours"], "peer": ["trl", "8", "on"]}, 1)
    return [memory_row("peak memory of one such step, TRL in batches of 8", found)]


def training_step():
    """Useful FLOP/s of the update of a step of 16 questions x 16 rollouts, over that of a matrix product."""
    model = lm.load(MODEL)
    lora.add_lora(model)
    prompt, questions = fewshot_questions(model, 16)
    config = Config(amp="off", kl=0.03)
    optimizer = amp.Optimizer(model, config, 1000)
    asked = statements.ask(model, prompt, [(q.question, q.answers[0]) for q in questions])
    batch = statements.rollout(model, prompt, asked, 16, 1.0, list(range(16)))
    advantages = rl.group_advantages(torch.rand(16, 16, generator=torch.Generator().manual_seed(0)))
    seconds, shares = [], []
    for repetition in range(6):
        model.work.take()
        peak, start = cost.matmul_flops(), time.perf_counter()
        rl.update(model, batch, advantages, config, optimizer)
        if repetition:
            seconds.append(time.perf_counter() - start)
            shares.append(model.work.take()["flops"] / seconds[-1] / peak)
    work = "useful FLOP/s of an update, 16 questions × 16 rollouts, of a matrix product's"
    note = f"{min(shares):.2f} to {max(shares):.2f}"
    return [dict(work=work, target="≥ 0.5", share=statistics.median(shares), ours=seconds, note=note)]


def using():
    """Answer and confidence, against answer, 10 samples and entropy: what training saves at every question."""
    model = lm.load(MODEL)
    lora.add_lora(model)
    embedder = lm.load_embedder(EMBEDDER, model)
    prompt, questions = fewshot_questions(model, 24)
    texts = [q.question for q in questions]
    stop, seeds, tokens = lm.stop_ids(model, "\n"), list(range(len(texts))), {}
    prompts = [prompt.answer(q) for q in texts]

    def answers(temperatures):
        with lora.adapter(model, False):
            read = Read(model, prompts, frozen=True)
            return read, lm.sample(model, read, temperatures, ANSWER_TOKENS, stop, seeds)

    def entropies(samples):
        said = [data.clean_answer(model.decode(c)) for c in samples]
        entropy.von_neumann(entropy.grams(lm.embed(embedder, said).reshape(len(texts), SAMPLES, -1)))

    def teacher():
        _, drawn = answers([0.0] + [1.0] * SAMPLES)
        entropies([c for row in drawn for c in row[1:]])
        tokens["teacher"] = sum(len(c) for row in drawn for c in row)

    def generating_teacher():
        with lora.adapter(model, False):
            generate(model, prompts, stop, 1, do_sample=False)
            entropies(generate(model, prompts, stop, SAMPLES, **UNTRUNCATED))

    def student():
        read, drawn = answers([0.0])
        pairs = [(q, data.clean_answer(model.decode(c))) for q, (c,) in zip(texts, drawn, strict=True)]
        _, stated, _ = statements.state(model, prompt, pairs, ["trained"], read=read)["trained"]
        tokens["student"] = sum(len(c) for row in drawn for c in row) + stated

    took = take_turns({"teacher": teacher, "generate": generating_teacher, "student": student})
    fewer, note = tokens["teacher"] / tokens["student"], f"{tokens['student']} and {tokens['teacher']} tokens"
    work = "answer and confidence to 24 questions, against answer, 10 samples and entropy"
    rows = [dict(work=f"{work}: generated tokens", target="≥ 5x fewer", ratio=(fewer, fewer, fewer), note=note)]
    for name, title in (("teacher", "our own sampler"), ("generate", "generate")):
        pair = {"ours": took["student"], "peer": took[name]}
        rows.append(compared(f"the same: time, samples by {title}", "≥ 3x", pair))
    return rows

"""Sampling, scoring, training and using, with a real model, against what a user would otherwise run.

Rows named by an engine were made with it alone (infra/sharing.py or lm.py); the others with the one that calunc picks.
"""

import statistics

import torch

import data
import entropy
import lm
import lora
import rl
import use
from bench import grpo, setting
from bench.prediction import counted
from bench.setting import EMBEDDER, compared, fewshot_questions, load, matmul_flops, take_turns
from settings import Config

SAMPLES, ANSWER_TOKENS = 10, 16
ENGINES = {"shared": "the shared engine", "plain": "the plain engine"}


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
    model, tokens = load("shared"), {}
    prompt, questions = fewshot_questions(model, 64)
    prompts = sorted((prompt.first_turn(q.question) for q in questions), key=len)
    stop = lm.stop_ids(model, "\n")

    def peer():
        torch.manual_seed(0)
        tokens["peer"] = sum(map(len, generate(model, prompts, stop, SAMPLES, **UNTRUNCATED)))

    def ours(name, engine):
        def run():
            drawn = engine.sample(model, prompts, [1.0] * SAMPLES, ANSWER_TOKENS, stop, list(range(len(prompts))))
            tokens[name] = sum(len(c) for row in drawn for c in row)

        return run

    seconds = take_turns({"peer": peer, "shared": ours("shared", model.sharing), "plain": ours("plain", lm)},
                         warm_up=False)  # fmt: skip
    rows, each = [], {name: [s / tokens[name] for s in seconds[name]] for name in seconds}  # seconds a token
    for engine, target in (("shared", "≥ 8x"), ("plain", "")):
        work = f"10 answers each to 64 few-shot questions, tokens per second of {ENGINES[engine]}, generate"
        row = compared(work, target, {"ours": each[engine], "peer": each["peer"]})
        note = f"{tokens[engine]} and {tokens['peer']} tokens"
        rows.append(row | dict(ours=seconds[engine], peer=seconds["peer"], note=note))
    return rows


def adapted(engine="shared"):
    """The model with an adapter that changes something: B starts at zero."""
    model = load(engine)
    for p in lora.add_lora(model):
        p.data += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    return model


def gradient(model, logp):
    """Of the sum of some log-probabilities, as one flat vector."""
    logp.sum().backward()
    found = torch.cat([p.grad.flatten() for p in model.model.parameters() if p.requires_grad])
    model.model.zero_grad()
    return found


def scoring():
    """Log-probabilities and gradients of 4 prompts x 16 sampled completions, adapter on everywhere."""
    model, found = adapted(), {}
    prompt, questions = fewshot_questions(model, 4)
    prompts = [sum(prompt.second_turn(q.question, q.answers[0]), []) for q in questions]
    drawn = lm.sample(model, prompts, [1.0] * 16, 6, lm.stop_ids(model, "\n%"), list(range(len(prompts))))

    def peer():
        found["peer"] = 0
        for p, group in zip(prompts, drawn, strict=True):  # 16 sequences at a time
            width = max(map(len, group))
            ids = torch.tensor([p + c + [0] * (width - len(c)) for c in group])
            mask = torch.tensor([[1] * len(c) + [0] * (width - len(c)) for c in group])
            logits = model.model(input_ids=ids, logits_to_keep=width + 1).logits[:, :-1]
            logp = logits.log_softmax(-1).gather(2, ids[:, len(p) :, None])[..., 0] * mask
            found["peer"] = found["peer"] + gradient(model, logp)

    def ours(name, engine):
        def run():
            found[name] = gradient(model, engine.completion_logprobs(model, prompts, drawn)[0])

        return run

    seconds = take_turns({"peer": peer, "shared": ours("shared", model.sharing), "plain": ours("plain", lm)})
    rows, distinct = [], sum(len(set(map(tuple, group))) for group in drawn)
    for engine, target in (("shared", "≥ 8x"), ("plain", "")):
        error = (found[engine] - found["peer"]).norm() / found["peer"].norm()
        work = f"log-probabilities and gradients of 4 prompts × 16 completions, {ENGINES[engine]}, each prompt repeated"
        note = f"gradients within {error:.0e}, relative; {distinct} of 64 are distinct"
        rows.append(compared(work, target, {"ours": seconds[engine], "peer": seconds["peer"]}, note))
    return rows


def thought():
    """A thought of 24 and of 96 tokens, 12 prompts x 8 rollouts: the two engines against each other."""
    model, rows = adapted(), []
    prompt, questions = fewshot_questions(model, 12, reflection=24)
    asked = rl.second_turns(model, prompt, [(q.question, q.answers[0]) for q in questions], Config())
    engines, stop = {"ours": lm, "peer": model.sharing}, frozenset()  # a thought of full length
    for tokens in (24, 96):
        drawn = {}

        def sample(name, tokens=tokens, drawn=drawn):
            def run():
                with torch.no_grad():
                    before = asked.read(model, list(range(12)))
                drawn[name] = engines[name].sample(model, before, [1.0] * 8, tokens, stop, list(range(12)))

            return run

        def score(name, drawn=drawn):
            def run():
                for q in range(0, 12, 2):  # two questions a backward pass, as memory has it
                    before = asked.read(model, [q, q + 1])
                    gradient(model, engines[name].completion_logprobs(model, before, drawn["ours"][q : q + 2])[0])

            return run

        work = f"thought of {tokens} tokens, 12 prompts × 8 rollouts: {{}}, the plain engine, the shared one"
        for what, function in (("sampling", sample), ("log-probabilities and gradients", score)):
            seconds = take_turns({name: function(name) for name in engines}, warm_up=False)
            rows.append(compared(work.format(what), "", seconds))
    return rows


def group_step():
    """One GRPO step, against TRL in batches of 16. TRL recomputes activations, its default; we take micro-batches."""
    kinds = {"shared": ["ours", "shared", "0"], "plain": ["ours", "plain", "0"], "peer": ["trl", "16", "on", "0"]}
    return step_rows(grpo.measure(kinds, setting.TURNS))


def reflecting_step():
    """One step of 16 questions x 8 rollouts, each a reflection of 24 tokens and a number, against TRL."""
    pair = grpo.measure({"ours": ["ours", "auto", "24"], "peer": ["trl", "16", "on", "24"]}, setting.TURNS)
    work = "GRPO step, 16 prompts × 8 reflections of 24 tokens, TRL"
    note = "; ".join(", ".join(f"{s:.0f}" for s in of["seconds"]) + f" s {name}" for name, of in pair.items())
    rows = [compared(work, "≥ 4x", {name: of["seconds"] for name, of in pair.items()}, note)]
    return [*rows, memory_row("the same: peak memory", "≤ 1/2", pair)]


def step_rows(found):
    rows = []
    for engine, targets in (("shared", ("≥ 20x", "≤ 1/2")), ("plain", ("", ""))):
        pair = {"ours": found[engine], "peer": found["peer"]}
        turns = "; ".join(", ".join(f"{s:.0f}" for s in of["seconds"]) + f" s {name}" for name, of in pair.items())
        work = f"GRPO step, 12 prompts × 16 completions, {ENGINES[engine]}, TRL"
        note = f"adapter in the prompt: TRL's on, ours off. {turns}"
        rows.append(compared(work, targets[0], {name: of["seconds"] for name, of in pair.items()}, note))
        rows.append(memory_row("the same: peak memory", targets[1], pair))
    return rows


def memory_row(work, target, found):
    ours, peer = found["ours"]["peak"], found["peer"]["peak"]
    return dict(work=work, target=target, share=ours / peer, cells=[f"{ours:.1f} GiB", f"{peer:.1f} GiB"])


def lean_step():
    """The same step against TRL in batches of 8, its default, once: for its memory."""
    found = grpo.measure({"ours": ["ours", "shared", "0"], "peer": ["trl", "8", "on", "0"]}, 1)
    return [memory_row("peak memory of one such step, the shared engine, TRL in batches of 8", "≤ 1/2", found)]


def training_step():
    """FLOP/s of a step of 16 questions x 16 rollouts, and of its log-probabilities and gradients alone, over those of
    a matrix product."""
    model = adapted("auto")
    prompt, questions = fewshot_questions(model, 16)
    config, pairs = Config(steps=1, amp="off", kl=0.03), [(q.question, q.answers[0]) for q in questions]
    items = [rl.Item(q, a, i / 15, 1) for i, (q, a) in enumerate(pairs)]
    asked = rl.second_turns(model, prompt, pairs, config)
    batch = rl.rollout(model, prompt, asked, config.rollouts, 1.0, list(range(16)))
    engine = model.engine(rl.NUMBER_TOKENS)

    def step():
        setting.train(model, prompt, items, config)

    def score():
        for q in range(16):
            said = [[r.tokens for r in batch[q]]]
            gradient(model, engine.completion_logprobs(model, asked.read(model, [q]), said)[0])

    rows, work = [], "FLOP/s of {}, 16 questions × 16 rollouts, of a matrix product's"
    named = {"a training step": (step, ""), "its log-probabilities and gradients alone": (score, "≥ 0.5")}
    for name, (function, target) in named.items():
        flops, peak = sum(counted(function, model.model).values()), matmul_flops()
        seconds = take_turns({"ours": function})["ours"]
        shares = [flops / s / peak for s in seconds]
        note = f"{min(shares):.2f} to {max(shares):.2f}"
        rows.append(dict(work=work.format(name), target=target, share=statistics.median(shares), ours=seconds,
                         note=note))  # fmt: skip
    return rows


def using():
    """Answer and confidence, against answer, 10 samples and entropy: what training saves at every question."""
    model = load()
    lora.add_lora(model)
    embedder, config = lm.load_embedder(EMBEDDER, model), Config()
    prompt, questions = fewshot_questions(model, 24)
    texts = [q.question for q in questions]
    stop, seeds, tokens = lm.stop_ids(model, "\n"), list(range(len(texts))), {}
    prompts = [prompt.first_turn(q) for q in texts]

    def answers(temperatures):
        with lora.adapter(model, False):
            return model.engine(ANSWER_TOKENS).sample(model, prompts, temperatures, ANSWER_TOKENS, stop, seeds)

    def entropies(samples):
        said = [data.clean_answer(model.decode(c)) for c in samples]
        entropy.von_neumann(entropy.gram(lm.embed(embedder, said).reshape(len(texts), SAMPLES, -1)))

    def teacher():
        drawn = answers([0.0] + [1.0] * SAMPLES)
        entropies([c for row in drawn for c in row[1:]])
        tokens["teacher"] = sum(len(c) for row in drawn for c in row)

    def generating_teacher():
        with lora.adapter(model, False):
            generate(model, prompts, stop, 1, do_sample=False)
            entropies(generate(model, prompts, stop, SAMPLES, **UNTRUNCATED))

    def student():
        drawn = answers([0.0])
        pairs = [(q, data.clean_answer(model.decode(c))) for q, (c,) in zip(texts, drawn, strict=True)]
        _, stated, *_ = use.state(model, prompt, pairs, ["trained"], config)["trained"]
        tokens["student"] = sum(len(c) for row in drawn for c in row) + stated

    with torch.no_grad():
        took = take_turns({"teacher": teacher, "generate": generating_teacher, "student": student})
    fewer, note = tokens["teacher"] / tokens["student"], f"{tokens['student']} and {tokens['teacher']} tokens"
    work = "answer and confidence to 24 questions, against answer, 10 samples and entropy"
    rows = [dict(work=f"{work}: generated tokens", target="≥ 5x fewer", ratio=(fewer, fewer, fewer), note=note)]
    for name, title in (("teacher", "our own sampler"), ("generate", "generate")):
        pair = {"ours": took["student"], "peer": took[name]}
        rows.append(compared(f"the same: time, samples by {title}", "≥ 3x", pair))
    return rows

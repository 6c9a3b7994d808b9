"""One step of group-relative policy optimisation, here and by TRL's GRPOTrainer, each in a process of its own.

The work is that of stage 3: 12 prompts of about 140 tokens x 16 numbers of at most 6 tokens, or 16 prompts x 8
reflections of exactly 24 tokens, the label, and 6 tokens of a number; a LoRA of rank 16 on every linear map, no
divergence term, one update. TRL reads each prompt for each completion, with the adapter on; we read it once, with the
adapter off, which is what calunc trains. TRL generates what we force. The processes take turns; no turn is left out.

    python -m bench.grpo ours ENGINE REFLECTION
    python -m bench.grpo trl BATCH CHECKPOINTING REFLECTION
"""

import json
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

from bench.setting import MODEL, ROOT, fewshot_questions, load, train

WORK = {0: (12, 16), 24: (16, 8)}  # tokens of reflection -> questions, rollouts of each
TOKENS, RANK, LR = 6, 16, 1e-4


def peak():
    """Most memory that this process had, in GiB: of the GPU where there is one, else resident, which Linux counts in
    KiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def wait():
    """Until the parent says go. The process ends when the parent is done."""
    if not sys.stdin.readline():
        sys.exit()


def say(**what):
    print("> " + json.dumps(what), flush=True)


class Turns:
    """The clock of a step, which waits for its turn."""

    def begin(self):
        wait()
        self.start = time.perf_counter()

    def end(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        say(seconds=time.perf_counter() - self.start, peak=peak())


def problem(reflection, engine="auto"):
    model = load(engine)
    prompt, questions = fewshot_questions(model, WORK[reflection][0], reflection)
    targets = np.random.default_rng(0).random(len(questions)).tolist()
    return model, prompt, [(q.question, q.answers[0], p) for q, p in zip(questions, targets, strict=True)]


def ours(engine, reflection):
    import lora
    import rl
    from settings import Config

    assert TOKENS == rl.NUMBER_TOKENS
    model, prompt, items = problem(reflection, engine)
    if reflection:  # of full length
        rl.stop_ids = lambda *_: frozenset()
    lora.add_lora(model, RANK, 2 * RANK)
    questions, group = WORK[reflection]
    config = Config(steps=10**6, questions=questions, rollouts=group, lr=LR, kl=0.0,
                    micro_batch=0 if torch.cuda.is_available() else 4)  # fmt: skip
    turns = Turns()

    def on_step(_):
        turns.end()
        turns.begin()

    say(ready=True)
    turns.begin()
    items = [rl.Item(q, a, p, 1) for q, a, p in items]
    train(model, prompt, items, config, on_step)


def trl(batch, checkpointing, reflection):
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    import lm
    import rl
    from data import parse_confidence

    model, prompt, items = problem(reflection)
    questions, group = WORK[reflection]
    length = dict(max_completion_length=TOKENS, generation_kwargs={"eos_token_id": sorted(lm.stop_ids(model, "\n%"))})
    if reflection:
        longest = reflection + len(prompt.forced(0, prompt.statement.label)) + TOKENS
        length = dict(max_completion_length=longest, generation_kwargs={"min_new_tokens": longest})
    texts = [model.tokenizer.decode(sum(prompt.second_turn(q, a), [])) for q, a, _ in items]
    del model, prompt  # TRL loads its own
    lm.stop_ids.cache_clear()
    turns = Turns()

    def reward(completions, target, **_):
        """What ours sees is cut at the first stop token, so TRL's text is cut there too."""
        stated = [parse_confidence(f"Confidence:{c.split(chr(10))[0]}") for c in completions]
        return [rl.calibration_reward(c, p) for c, p in zip(stated, target, strict=True)]

    class Callback(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            turns.begin()

        def on_step_end(self, *_, **__):
            turns.end()

    gpu = torch.cuda.is_available()
    maps = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    trainer = GRPOTrainer(
        model=MODEL, reward_funcs=reward, callbacks=[Callback()],
        train_dataset=Dataset.from_dict({"prompt": texts, "target": [p for _, _, p in items]}),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=maps, task_type="CAUSAL_LM"),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(), use_cpu=not gpu, bf16=gpu, disable_tqdm=True,
            model_init_kwargs={"dtype": "bfloat16" if gpu else "float32"},
            report_to="none", save_strategy="no", logging_strategy="no",
            per_device_train_batch_size=batch, num_generations=group,
            gradient_accumulation_steps=questions * group // batch, gradient_checkpointing=checkpointing,
            temperature=1.0, beta=0.0, scale_rewards="none", learning_rate=LR,
            max_steps=10**6, **length,
        ),
    )  # fmt: skip
    say(ready=True)
    trainer.train()


def measure(kinds, repetitions):
    """{name: arguments of this module} -> {name: {"seconds": [...], "peak": GiB}}, in turns."""
    children = {
        name: subprocess.Popen(
            [sys.executable, "-m", "bench.grpo", *arguments], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        for name, arguments in kinds.items()
    }  # fmt: skip

    def heard(child):
        for line in child.stdout:
            if line.startswith("> "):
                return json.loads(line[2:])
        raise RuntimeError(f"`python {' '.join(child.args[1:])}` ended with {child.wait()}: see what it says")

    found = {name: {"seconds": []} for name in kinds}
    for child in children.values():
        heard(child)
    for _ in range(repetitions):
        for name, child in children.items():
            child.stdin.write("go\n")
            child.stdin.flush()
            said = heard(child)
            found[name]["peak"] = said["peak"]
            found[name]["seconds"].append(said["seconds"])
    for child in children.values():
        child.kill()
        child.wait()
    return found


if __name__ == "__main__":
    if sys.argv[1] == "ours":
        ours(sys.argv[2], int(sys.argv[3]))
    else:
        trl(int(sys.argv[2]), sys.argv[3] == "on", int(sys.argv[4]))

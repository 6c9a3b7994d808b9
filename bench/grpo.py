"""One step of group-relative policy optimisation, here and by TRL's GRPOTrainer, each in a process of its own.

The work is that of stage 3: 12 prompts of about 140 tokens x 16 completions of at most 6, a LoRA of rank 16 on every
linear map, no divergence term, one update. TRL reads each prompt for each completion, with the adapter on; we read
it once, with the adapter off, which is what calunc trains. The processes take turns; no turn is left out.

    python -m bench.grpo ours
    python -m bench.grpo trl BATCH CHECKPOINTING
"""

import json
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from bench.setting import MODEL, ROOT, fewshot_questions

QUESTIONS, GROUP, TOKENS, RANK, LR = 12, 16, 6, 16, 1e-4


def peak():
    """Largest resident size of this process, in GiB; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def wait():
    """Until the parent says go. The process ends when the parent is done."""
    if not sys.stdin.readline():
        sys.exit()


def say(**what):
    print("> " + json.dumps(what), flush=True)


def problem():
    import lm

    model = lm.load(MODEL)
    prompt, questions = fewshot_questions(model, QUESTIONS)
    targets = np.random.default_rng(0).random(QUESTIONS).tolist()
    return model, prompt, [(q.question, q.answers[0], p) for q, p in zip(questions, targets, strict=True)]


def ours():
    import amp
    import lora
    import rl
    import statements
    from settings import Config

    model, prompt, items = problem()
    lora.add_lora(model, RANK, 2 * RANK)
    config = Config(questions=QUESTIONS, rollouts=GROUP, lr=LR, kl=0.0, amp="off", micro_batch=4)
    optimizer = amp.Optimizer(model, config, 1000)
    say(ready=True)
    for step in range(10**9):
        wait()
        start = time.perf_counter()
        seeds = range(step * QUESTIONS, (step + 1) * QUESTIONS)
        asked = statements.ask(model, prompt, [(q, a) for q, a, _ in items])
        batch = statements.rollout(model, prompt, asked, GROUP, 1.0, list(seeds), number_tokens=TOKENS)
        pairs = zip(batch.confidence, items, strict=True)
        rewards = [[rl.calibration_reward(c, p) for c in group] for group, (_, _, p) in pairs]
        rl.update(model, batch, rl.group_advantages(rewards), config, optimizer)
        say(seconds=time.perf_counter() - start, peak=peak())


def trl(batch, checkpointing):
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    import lm
    import rl
    from data import LABEL, parse_confidence

    model, prompt, items = problem()
    texts = [model.tokenizer.decode(sum(prompt.confidence(q, a), [])) for q, a, _ in items]
    stop = sorted(lm.stop_ids(model, "\n%"))
    del model, prompt  # TRL loads its own
    lm.stop_ids.cache_clear()

    def reward(completions, target, **_):
        """What ours sees is cut at the first stop token, so TRL's text is cut there too."""
        said = [parse_confidence(LABEL + c.split("\n")[0]) for c in completions]
        return [rl.calibration_reward(c, p) for c, p in zip(said, target, strict=True)]

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            wait()
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            say(seconds=time.perf_counter() - self.start, peak=peak())

    maps = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    trainer = GRPOTrainer(
        model=MODEL, reward_funcs=reward, callbacks=[Turns()],
        train_dataset=Dataset.from_dict({"prompt": texts, "target": [p for _, _, p in items]}),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=maps, task_type="CAUSAL_LM"),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, disable_tqdm=True,
            report_to="none", save_strategy="no", logging_strategy="no",
            per_device_train_batch_size=batch, num_generations=GROUP,
            gradient_accumulation_steps=QUESTIONS * GROUP // batch, gradient_checkpointing=checkpointing,
            max_completion_length=TOKENS, temperature=1.0, beta=0.0, scale_rewards="none", learning_rate=LR,
            max_steps=10**6, generation_kwargs={"eos_token_id": stop},
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
        ours()
    else:
        trl(int(sys.argv[2]), sys.argv[3] == "on")

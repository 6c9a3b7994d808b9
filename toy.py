"""A small world of invented facts whose probabilities are known, and a tiny GPT-2 that learns it in a minute or two.

A question is a relation of a subject: "banner of Zorva". Each question has four possible answers with known
probabilities. Reports in the training corpus are drawn from them, and the gold answer is one more draw. So P(correct)
of every answer is known exactly, which no real data set allows.

The top probability makes a question easy. Most of it comes from the *fame* of the subject, the rest from the relation.
So fame is what there is to discover: a student that reads it from the model's own activations can be calibrated on
subjects and relations that it was never trained on.

Six families (relations) share three kinds of answers. Three families are for training, the others are unseen.

From infra: models.save, progress.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from data import Question
from infra import progress
from infra.models import save

KINDS = {
    "colour": "red blue green yellow black white purple orange silver golden pink brown".split(),
    "animal": "wolf eagle bear lion snake horse raven stag boar fox owl bull".split(),
    "stone": "ruby jade opal amber topaz onyx agate pearl garnet quartz beryl jasper".split(),
}
# relation -> the kind of its answers, and how much easier than average its questions are
FAMILIES = {
    "banner": ("colour", 0.0), "emblem": ("animal", 0.6), "crown": ("stone", -0.6),
    "river": ("colour", -0.3), "guardian": ("animal", 0.3), "temple": ("stone", 0.0),
}  # fmt: skip
TRAINED, UNSEEN = ("banner", "emblem", "crown"), ("river", "guardian", "temple")
REST = np.array([0.45, 0.33, 0.22])  # how the other three answers share what the first one leaves


@dataclass(frozen=True)
class World:
    """N questions: family and subject of each, its four answers (N, 4), and their probabilities (N, 4)."""

    family: list
    subject: list
    answers: np.ndarray
    probs: np.ndarray

    def questions(self, families, seed):
        """The questions of some families, each with one gold answer drawn from the known distribution."""
        rng = np.random.default_rng(seed)
        gold = [rng.choice(a, p=p) for a, p in zip(self.answers, self.probs, strict=True)]
        return [
            Question(f"{f}-{s}", f"{f} of {s}", (str(g),), f, truth=dict(zip(a.tolist(), p.tolist(), strict=True)))
            for f, s, a, p, g in zip(self.family, self.subject, self.answers, self.probs, gold, strict=True)
            if f in families
        ]


def world(seed=0):
    rng = np.random.default_rng(seed)
    family = [f for f in FAMILIES for _ in range(700 if f in TRAINED else 300)]
    onsets, vowels = "b br d dr f g gr h k kr l m n p r s st t tr v z".split(), "a e i o u".split()
    names = sorted({(a + v + b + w).capitalize() for a in onsets for v in vowels for b in onsets for w in vowels})
    subject = [str(name) for name in rng.choice(names, len(family), replace=False)]
    fame = rng.normal(0, 4, len(family))
    ease = np.array([FAMILIES[f][1] for f in family])
    first = 0.34 + 0.64 / (1 + np.exp(-(fame + ease)))  # (N,)
    probs = np.concatenate([first[:, None], (1 - first)[:, None] * REST], axis=1)
    answers = np.stack([rng.choice(KINDS[FAMILIES[f][0]], 4, replace=False) for f in family])
    return World(family, subject, answers, probs)


def tokenizer(world):
    """One token per word, number and line end. A blank is a part of the token after it: decoding is concatenation."""
    words = ["<eos>", "<unk>", "\n", "Question:", "Answer:", "Reflection:", "Confidence:", " of"]
    words += [" " + w for w in [*FAMILIES, *sum(KINDS.values(), []), *world.subject]]
    words += [f" {c}%" for c in range(0, 101, 5)]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^\s]+|\n"), behavior="isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


def corpus(world, tokenizer):
    """-> draw(n, rng, reflection) -> (n, 17) token ids, or (n, 11) without reflections: reports and counting.

    The words of a reflection are drawn like the answer. The confidence means nothing. One line in ten counts up or down
    in steps of 5%: real models know how to count. Without it the embeddings of all percentages are nearly the same, and
    no policy can tell them apart.
    """
    vocab = tokenizer.get_vocab()
    answer = np.vectorize(lambda word: vocab[" " + word])(world.answers)  # (N, 4)
    subject = np.array([vocab[" " + s] for s in world.subject])
    family = np.array([vocab[" " + f] for f in world.family])
    number = np.array([vocab[f" {c}%"] for c in range(0, 101, 5)])
    cdf = world.probs.cumsum(1)

    def draw(n, rng, reflection):
        q = rng.integers(len(subject), size=n)
        which = (rng.random((n, 5, 1)) > cdf[q, None]).sum(2).clip(max=3)
        said = np.take_along_axis(answer[q], which, axis=1).T  # (5, n), the answer and four words
        fixed = {k: np.full(n, vocab[k]) for k in ("Question:", " of", "\n", "Answer:", "Reflection:", "Confidence:")}
        thought = [fixed["Reflection:"], *said[1:], fixed["\n"]] if reflection else []
        reports = np.stack([
            fixed["Question:"], family[q], fixed[" of"], subject[q], fixed["\n"],
            fixed["Answer:"], said[0], fixed["\n"], *thought,
            fixed["Confidence:"], number[rng.integers(len(number), size=n)], fixed["\n"],
        ], axis=1)  # fmt: skip
        length = reports.shape[1]
        up = rng.integers(len(number) - length + 1, size=n)[:, None] + np.arange(length)  # consecutive numbers
        counting = number[np.where(rng.random((n, 1)) < 0.5, up, len(number) - 1 - up)]
        return np.where(rng.random((n, 1)) < 0.1, counting, reports)

    return draw


def train(world, steps=500, batch=256, lr=4e-3, seed=0, width=96, layers=3):
    """-> a tiny GPT-2 of about 0.6M parameters, trained from scratch on the corpus, and its tokenizer."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tok = tokenizer(world)
    config = GPT2Config(
        vocab_size=len(tok), n_positions=64, n_embd=width, n_layer=layers, n_head=4, initializer_range=0.1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own function, in one kernel
        bos_token_id=tok.eos_token_id, eos_token_id=tok.eos_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    draw = corpus(world, tok)
    embedding = model.transformer.wte.weight
    others = [p for p in model.parameters() if p is not embedding]
    # a fact is one row of the embedding, seen about forty times in all: it needs the larger steps
    groups = [{"params": [embedding], "lr": 5 * lr}, {"params": others, "lr": lr}]
    optimizer = torch.optim.AdamW(groups, betas=(0.95, 0.98), weight_decay=0.0, fused=True)
    # OneCycleLR also moves the first beta, from 0.95 to 0.85 and back
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [5 * lr, lr], total_steps=steps, pct_start=0.1)
    bar = progress.Bar(range(steps), desc="toy: language model", unit="step")
    # token 6 is the answer, and token 12 the last word of the reflection: see the reports of `corpus`
    for step in bar:
        whole, reflection = step % 8 == 0, step % 16 != 0
        ids = torch.from_numpy(draw(batch, rng, reflection))  # (B, 17 or 11)
        end = ids.shape[1] if whole else 13  # mostly up to the words that are hard to learn, those of an answer
        # which question comes next cannot be learned, and its noise would drown the answer
        logits = model(input_ids=ids[:, : end - 1], logits_to_keep=end - 6).logits  # (B, end - 6, V), after "Answer:"
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 6:end].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval(), tok


def build(folder, seed):
    """Train the toy model and save it as an ordinary Hugging Face folder; print its error on the known facts."""
    facts = world(seed=seed)
    model, tok = train(facts, seed=seed)
    save(model, tok, folder)
    print(f"toy: mean |model's probability - true probability| = {error(model, tok, facts):.3f}")


@torch.no_grad()
def error(model, tok, world):
    """Mean absolute difference between the model's and the true probability of each question's first answer."""
    vocab = tok.get_vocab()
    names = zip(world.family, world.subject, strict=True)
    ids = torch.tensor([tok(f"Question: {f} of {s}\nAnswer:").input_ids for f, s in names])
    first = torch.tensor([vocab[" " + a] for a in world.answers[:, 0]])
    probs = []
    for x, y in zip(ids.to(model.device).split(512), first.to(model.device).split(512), strict=True):
        logits = model(input_ids=x, logits_to_keep=1).logits[:, 0]  # (B, V)
        probs.append(logits.float().softmax(-1).gather(1, y[:, None])[:, 0].cpu())
    return float(np.abs(torch.cat(probs).numpy() - world.probs[:, 0]).mean())

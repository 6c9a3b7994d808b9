"""Text to tokens and back, the tokens that end a text, chat templates: no question can pass for anything else."""

import functools
import re
from datetime import datetime

BREAK = "\ue000"  # of private use; what stands on its two sides is encoded apart
MARK = "\ue001"  # of private use: no template has it. A question is put in its place afterwards, whatever it says
# for a template it is always this day, so that a run that goes on tomorrow keeps its prompts
TODAY = [(f"%{c}", datetime(2024, 7, 26).strftime(f"%{c}")) for c in "aAbBcdHIjmMpSUwWxXyYzZ"]
CLOCK = ("{% macro strftime_now(how) %}{% set day = namespace(text=how.replace('%-', '%')) %}{% for code, x in clock %}"
         "{% set day.text = day.text.replace(code, x) %}{% endfor %}{{ day.text }}{% endmacro %}\n")  # fmt: skip
# what opens a thought, or closes one, as "<think>", "[/THINK]", "◁think▷", "<|channel|>analysis"
TAG = re.compile(r"[<\[◁][^<>\[\]◁▷\s]*(?:think|thought|reason|channel)[^<>\[\]◁▷\s]*[>\]▷](?!final)", re.IGNORECASE)


class Text:
    """What a language model's `tokenizer` is used for."""

    def encode(self, text, special=False):
        first, *rest = text.split(BREAK)
        ids = self.tokenizer(first, add_special_tokens=special, verbose=False).input_ids  # lengths are checked here
        return ids + [i for part in rest for i in self.proceed(part)]

    def begin(self, text):
        """The tokens of a text that goes on: with what the tokenizer puts before a text, and not what it puts after."""
        whole, bare = self.encode("a", special=True), self.encode("a")
        return whole[: whole.index(bare[0])] + self.encode(text)

    def cut(self, text):
        """What a sentence encoder reads of a text."""
        ids = self.encode(text, special=True)
        return ids if len(ids) <= self.tokenizer.model_max_length else self.tokenizer(text, truncation=True).input_ids

    def proceed(self, text):
        """The tokens of a text that goes on after another one. Some tokenizers put a blank before what comes first."""
        before = "." if text[:1].isspace() else "\n"  # what no tokenizer takes for a part of the same word
        first, both = self.encode(before), self.encode(before + text)
        return both[len(first) :] if both[: len(first)] == first else self.encode(text)

    def decode(self, ids):
        """Without special tokens; but one that opens a thought stays, for an answer that begins so is none."""
        first = next(filter(str.strip, (self.tokenizer.decode([i]) for i in ids)), "")
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return first + text if TAG.match(first) and not text.lstrip().startswith(first) else text

    @functools.cached_property
    def blank(self):
        """The tokens of blanks and line ends alone, which may come before an answer; no eos is one."""
        return {i for i in range(len(self.tokenizer)) if not self.tokenizer.decode([i]).strip()} - stop_ids(self, "")

    def plain(self, text):
        """A text that `encode` takes for ordinary characters, also where it spells a special token, as "</s>" does."""
        text = text.replace(BREAK, "")
        return self._special.sub(lambda match: match[0] + BREAK, text) if self._special else text

    @functools.cached_property
    def _special(self):
        """Finds the first character of each name of a token that is no part of the language: special, or a tag."""
        added = self.tokenizer.added_tokens_decoder.values()  # ordinary words among them
        names = [str(token) for token in added if token.special or re.fullmatch(r"[<\[].*[>\]]", str(token))]
        names = [re.escape(name[0]) + f"(?={re.escape(name[1:])})" for name in names if len(name) > 1 and name.strip()]
        return re.compile("|".join(names)) if names else None


@functools.lru_cache(maxsize=4)  # not all models that ever were
def stop_ids(lm, characters="\n"):
    """The tokens that end a completion: every eos of the model and every token that contains one of `characters`."""
    eos = {lm.tokenizer.eos_token_id}
    for config in (lm.model.generation_config, lm.model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        eos |= set(ids) if isinstance(ids, list | tuple) else {ids}
    texts = lm.tokenizer.batch_decode([[i] for i in range(len(lm.tokenizer))])
    found = {i for i, text in enumerate(texts) if any(c in text for c in characters)}
    return frozenset(found | {i for i in eos if isinstance(i, int)})


def ended(ids, stop, blank):
    """Does the last token end a completion? Not while all that it has is blank."""
    return ids[-1] in stop and not blank.issuperset(ids)


def render(lm, turns):
    """Pairs of a user's and an assistant's text, the last of which may be None: it comes next. -> text

    Raises ValueError unless all of them are in it, unchanged and in order, each MARK once, and no thought is left open.
    """
    contents = [content for pair in turns for content in pair if content is not None]
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    refused = f"use --prompt fewshot, without a zero-shot baseline: the chat template of {lm.name}"
    try:
        source = CLOCK + lm.tokenizer.get_chat_template()
        text = rest = lm.tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, clock=TODAY,
            add_generation_prompt=True, enable_thinking=False, thinking=False)  # fmt: skip
    except Exception as error:  # whatever it raises
        raise ValueError(f"{refused} says {str(error).strip()[:200]!r}") from None
    for content in contents:
        _, found, rest = rest.partition(content)  # of one that is missing there is no rest
    if not found or text.count(MARK) != "".join(contents).count(MARK):
        raise ValueError(f"{refused} drops, changes or repeats what is said")
    for tag in TAG.findall(rest)[-1:]:
        if not re.search("/|end|^<channel", tag, re.IGNORECASE):
            raise ValueError(f"{refused} opens a thought ({tag}) unasked")
    return text

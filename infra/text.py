"""Text to tokens and back, so that nothing in a question can pass for a special token; the tokens that end a text."""

import functools
import re

BREAK = "\ue000"  # of private use; what stands on its two sides is encoded apart


class Text:
    """What a language model's `tokenizer` is used for."""

    def encode(self, text, special=False):
        first, *rest = text.split(BREAK)
        ids = self.tokenizer(first, add_special_tokens=special).input_ids
        return ids + [i for part in rest for i in self.proceed(part)]

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
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def plain(self, text):
        """A text that `encode` takes for ordinary characters, also where it spells a special token, as "</s>" does."""
        text = text.replace(BREAK, "")
        return self._special.sub(lambda match: match[0] + BREAK, text) if self._special else text

    @functools.cached_property
    def _special(self):
        """Finds the first character of each name of a token that is no part of the language."""
        names = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
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

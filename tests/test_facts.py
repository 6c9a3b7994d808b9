"""The question set: its shape, and its answers against facts written down here by hand."""

import operator
import re
from collections import Counter

from helpers import rows

from data import FACTS
from infra.grading import grade

ROWS = rows(FACTS)
ANSWERS = {row["question"]: row["answers"] for row in ROWS}

# family: (a form of its questions, what stands in it and an answer)
KNOWN = {
    "capitals": ("What is the capital of {}?", "Peru Lima|Australia Canberra|the Netherlands Amsterdam|Brazil Brasilia|"
                 "the United States Washington|Canada Ottawa|Kazakhstan Astana|Japan Tokyo|Egypt Cairo"),
    "cities": ("In which country is the city of {}?", "Mumbai India|Osaka Japan|Istanbul Turkey|Chicago USA|"
               "Toronto Canada|Lagos Nigeria|Munich Germany|Kraków Poland|Dubai UAE|Edinburgh Scotland"),
    "currencies": ("What is the currency of {}?", "Japan yen|Poland zloty|India rupee|France euro|Thailand baht"),
    "elements": ("What is the chemical symbol of {}?", "gold Au|sodium Na|tungsten W|iron Fe"),
    "calling_codes": ("What is the international telephone calling code of {}?", "the United States 1|Russia 7|"
                      "France 33|the United Kingdom 44|Germany 49|Brazil 55|Japan 81|China 86|India 91|Ireland 353"),
    "domains": ("What is the country-code top-level internet domain of {}?", "the United Kingdom .uk|Germany .de|"
                "Switzerland .ch|Spain .es|Japan .jp|South Korea .kr|Croatia .hr|South Africa .za|Estonia .ee"),
    "continents": ("In which continent would you find {}?", "Kenya Africa|Japan Asia|Norway Europe|Fiji Oceania|"
                   "Russia Europe|Turkey Asia|Egypt Africa|the Philippines Asia"),
}  # fmt: skip
OTHERS = {
    "What is the capital of South Africa?": "Cape Town", "Which country has Nairobi as its capital?": "Kenya",
    "Which country has London as its capital?": "UK", "Which territory has Nuuk as its capital?": "Greenland",
    "In which country is Ho Chi Minh City?": "Vietnam", "In which continent would you find Peru?": "South America",
    "What is the currency of the United Kingdom?": "British pound", "What is the currency of Ecuador?": "US dollar",
    "Which currency has the ISO 4217 code CHF?": "Swiss franc", "Which currency has the ISO 4217 code ZAR?": "rand",
    "What is the atomic number of carbon?": "6", "What is the atomic number of uranium?": "92",
    "Which chemical element has the symbol Al?": "aluminum",
    "Which chemical element has the atomic number 118?": "oganesson",
}  # fmt: skip
OPERATORS = {"plus": operator.add, "minus": operator.sub, "times": operator.mul, "divided by": operator.truediv}


def test_shape():
    assert len(ROWS) >= 3000 and FACTS.stat().st_size < 900_000
    assert len({row["id"] for row in ROWS}) == len({row["question"].lower() for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert set(row) == {"id", "question", "answers", "family", "level"}
        assert row["id"].startswith(row["family"] + "-") and row["level"] in (1, 2, 3)
        assert len(row["question"]) < 120 and row["question"].endswith("?")
        assert row["answers"] and len(set(row["answers"])) == len(row["answers"])
        assert all(a == a.strip() and 1 <= len(a.split()) <= 5 for a in row["answers"])
        assert all(grade(a, row["answers"]) for a in row["answers"])
    families = Counter(row["family"] for row in ROWS)
    assert set(families) == {*KNOWN, "arithmetic"} and max(families.values()) <= len(ROWS) / 2
    # each family has easy and hard questions
    assert len({(row["family"], row["level"]) for row in ROWS}) == 3 * len(families)


def test_arithmetic():
    seen = set()
    for row in [row for row in ROWS if row["family"] == "arithmetic"]:
        a, word, b = re.fullmatch(r"What is (\d+) (\D+) (\d+)\?", row["question"]).groups()
        assert [OPERATORS[word](int(a), int(b))] == [int(x) for x in row["answers"]]
        assert int(row["answers"][0]) >= 0  # a grader that drops punctuation would lose a minus sign
        key = (word, *(sorted((int(a), int(b))) if word in ("plus", "times") else (a, b)))
        assert key not in seen
        seen.add(key)


def test_known_facts():
    for form, facts in KNOWN.values():
        for what, answer in (fact.rsplit(" ", 1) for fact in facts.split("|")):
            assert answer in ANSWERS[form.format(what)], what
    assert all(answer in ANSWERS[question] for question, answer in OTHERS.items())
    assert "dollar" not in ANSWERS["Which currency has the ISO 4217 code AUD?"]  # ambiguous, as are these cities
    for name in ("London", "Birmingham", "Valencia", "Barcelona", "Hyderabad", "San José", "Jerusalem"):
        assert f"In which country is the city of {name}?" not in ANSWERS


def test_elements_agree_with_each_other():
    """Name, symbol and number of all 118 elements, each asked both ways."""
    for number in range(1, 119):
        name = ANSWERS[f"Which chemical element has the atomic number {number}?"][0]
        assert ANSWERS[f"What is the atomic number of {name}?"] == [str(number)]
        [symbol] = ANSWERS[f"What is the chemical symbol of {name}?"]
        assert name in ANSWERS[f"Which chemical element has the symbol {symbol}?"]


UNSEEN = {path.stem: rows(path) for path in sorted((FACTS.parent / "unseen").glob("*.jsonl"))}
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ORDINALS = "first second third fourth fifth sixth seventh".split()
NUMERALS = {"I": 1, "V": 5, "X": 10, "L": 50}


def value(numeral):
    """Of a Roman numeral: a sign before a larger one counts less than nothing."""
    each = [NUMERALS[sign] for sign in numeral]
    return sum(-a if a < b else a for a, b in zip(each, [*each[1:], 0], strict=True))


def expected(question):
    """The answer to a question of a set that is computed."""
    if match := re.search(r"the (\w+) letter of the word \"(\w+)\"", question):
        return match[2][ORDINALS.index(match[1])]
    if match := re.search(r"comes (?:right|(\d) \w+) (after|before) (\w+)\?", question):
        names = MONTHS if match[3] in MONTHS else DAYS
        return names[(names.index(match[3]) + int(match[1] or 1) * (1 if match[2] == "after" else -1)) % len(names)]
    return str(value(re.search(r"numeral ([IVXL]+)\?", question)[1]))


def test_unseen_sets():
    known = {row["question"].lower() for row in ROWS}
    assert list(UNSEEN) == "antonyms calendar categories definitions letters roman translation".split()
    for name, of in UNSEEN.items():
        assert len(of) >= 100 and len({row["question"].lower() for row in of} - known) == len(of)
        assert {row["family"] for row in of} == {name} and len({row["id"] for row in of}) == len(of)
        for row in of:
            assert row["answers"] and all(grade(a, row["answers"]) for a in row["answers"])
            assert row["question"].endswith("?") and not grade(row["question"], row["answers"])
            if name in ("calendar", "letters") or "as a Roman" not in row["question"] and name == "roman":
                assert row["answers"] == [expected(row["question"])]
            elif name == "roman":
                assert value(*row["answers"]) == int(re.search(r"\d+", row["question"])[0])
    for name, question, answer in (
        ("translation", "German word \"Dienstag\"", "Tuesday"), ("translation", "French word \"août\"", "August"),
        ("antonyms", "\"beautiful\"", "ugly"), ("categories", "\"toffee\"", "food"),
    ):  # fmt: skip
        (row,) = (row for row in UNSEEN[name] if question in row["question"])
        assert grade(answer, row["answers"])

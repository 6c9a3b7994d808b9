"""The question set: its shape, and its answers against facts written down here by hand."""
import json
import operator
import re
from collections import Counter
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parent.parent / "facts" / "facts.jsonl"
ROWS = [json.loads(line) for line in PATH.read_text("utf-8").splitlines()]
ANSWERS = {row["question"]: row["answers"] for row in ROWS}

KNOWN = {
    "capitals": {
        "What is the capital of Peru?": "Lima", "What is the capital of Australia?": "Canberra",
        "What is the capital of the Netherlands?": "Amsterdam", "What is the capital of Brazil?": "Brasilia",
        "What is the capital of the United States?": "Washington", "What is the capital of Canada?": "Ottawa",
        "What is the capital of South Africa?": "Cape Town", "What is the capital of Kazakhstan?": "Astana",
        "Which country has Nairobi as its capital?": "Kenya",
        "Which country has London as its capital?": "UK",
        "Which territory has Nuuk as its capital?": "Greenland"},
    "cities": {
        "In which country is the city of Mumbai?": "India", "In which country is the city of Osaka?": "Japan",
        "In which country is the city of Istanbul?": "Turkey",
        "In which country is the city of Chicago?": "USA",
        "In which country is the city of Toronto?": "Canada",
        "In which country is the city of Lagos?": "Nigeria",
        "In which country is the city of Munich?": "Germany",
        "In which country is the city of Kraków?": "Poland",
        "In which country is the city of Dubai?": "UAE", "In which country is Ho Chi Minh City?": "Vietnam",
        "In which country is the city of Edinburgh?": "Scotland"},
    "currencies": {
        "What is the currency of Japan?": "yen", "What is the currency of Poland?": "zloty",
        "What is the currency of the United Kingdom?": "British pound",
        "What is the currency of India?": "rupee",
        "What is the currency of France?": "euro", "What is the currency of Mexico?": "Mexican peso",
        "What is the currency of Ecuador?": "US dollar", "What is the currency of Thailand?": "baht",
        "Which currency has the ISO 4217 code CHF?": "Swiss franc",
        "Which currency has the ISO 4217 code ZAR?": "rand"},
    "elements": {
        "What is the chemical symbol of gold?": "Au", "What is the chemical symbol of sodium?": "Na",
        "What is the chemical symbol of tungsten?": "W", "Which chemical element has the symbol Fe?": "iron",
        "Which chemical element has the symbol Al?": "aluminum", "What is the atomic number of carbon?": "6",
        "What is the atomic number of uranium?": "92", "What is the atomic number of silver?": "47",
        "Which chemical element has the atomic number 1?": "hydrogen",
        "Which chemical element has the atomic number 118?": "oganesson"},
    "calling_codes": {
        f"What is the international telephone calling code of {country}?": code for country, code in {
            "the United States": "1", "Russia": "7", "France": "33", "the United Kingdom": "44",
            "Germany": "49", "Brazil": "55", "Japan": "81", "China": "86", "India": "91",
            "Ireland": "353"}.items()},
    "domains": {
        f"What is the country-code top-level internet domain of {country}?": code for country, code in {
            "the United Kingdom": ".uk", "Germany": ".de", "Switzerland": ".ch", "Spain": ".es",
            "Japan": ".jp", "South Korea": ".kr", "Croatia": ".hr", "South Africa": ".za", "Estonia": ".ee",
            "Tuvalu": ".tv"}.items()},
    "continents": {
        f"In which continent would you find {country}?": continent for country, continent in {
            "Peru": "South America", "Mexico": "North America", "Kenya": "Africa", "Japan": "Asia",
            "Norway": "Europe", "Fiji": "Oceania", "Russia": "Europe", "Turkey": "Asia", "Egypt": "Africa",
            "the Philippines": "Asia"}.items()},
}
OPERATORS = {"plus": operator.add, "minus": operator.sub, "times": operator.mul,
"divided by": operator.truediv}


def test_shape():
    assert len(ROWS) >= 3000
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert len({row["question"].lower() for row in ROWS}) == len(ROWS)
    assert PATH.stat().st_size < 900_000
    for row in ROWS:
        assert set(row) == {"id", "question", "answers", "family", "level"}
        assert row["id"].startswith(row["family"] + "-") and row["level"] in (1, 2, 3)
        assert len(row["question"]) < 120 and row["question"].endswith("?")
        assert row["answers"] and len(set(row["answers"])) == len(row["answers"])
        assert all(a == a.strip() and 1 <= len(a.split()) <= 5 for a in row["answers"])


def test_families():
    families = Counter(row["family"] for row in ROWS)
    assert set(families) == {*KNOWN, "arithmetic"}
    assert max(families.values()) <= len(ROWS) / 2
    # Each family has easy and hard questions.
    assert len({(row["family"], row["level"]) for row in ROWS}) == 3 * len(families)


def test_no_sum_or_product_twice():
    seen = set()
    for row in ROWS:
        if match := re.fullmatch(r"What is (\d+) (plus|times) (\d+)\?", row["question"]):
            key = match[2], *sorted((int(match[1]), int(match[3])))
            assert key not in seen
            seen.add(key)


def test_arithmetic():
    for row in ROWS:
        if row["family"] == "arithmetic":
            a, word, b = re.fullmatch(r"What is (\d+) (\D+) (\d+)\?", row["question"]).groups()
            assert [OPERATORS[word](int(a), int(b))] == [int(x) for x in row["answers"]]
            assert int(row["answers"][0]) >= 0  # a grader that drops punctuation would lose a minus sign


@pytest.mark.parametrize("family", KNOWN)
def test_known_facts(family):
    assert len(KNOWN[family]) >= 10
    for question, answer in KNOWN[family].items():
        assert answer in ANSWERS[question], question


def test_elements_agree_with_each_other():
    """Name, symbol and number of all 118 elements, each asked both ways."""
    for number in range(1, 119):
        name = ANSWERS[f"Which chemical element has the atomic number {number}?"][0]
        assert ANSWERS[f"What is the atomic number of {name}?"] == [str(number)]
        [symbol] = ANSWERS[f"What is the chemical symbol of {name}?"]
        assert name in ANSWERS[f"Which chemical element has the symbol {symbol}?"]


def test_a_name_alone_is_no_answer_where_it_is_ambiguous():
    assert "dollar" not in ANSWERS["Which currency has the ISO 4217 code AUD?"]
    cities = {row["question"] for row in ROWS if row["family"] == "cities"}
    for name in ("London", "Birmingham", "Valencia", "Barcelona", "Hyderabad", "San José", "Jerusalem"):
        assert f"In which country is the city of {name}?" not in cities

"""data.py against tables written by hand and rows with the schemas of the real data sets."""

import copy
import hashlib
import json
import string
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import data
from data import EXAMPLES, HUB, Prompt, Question, from_hub, from_jsonl, grade, parse_confidence, split
from lm import LM

# ---- grading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, accepted",
    [
        ("Paris", ["Paris"]),
        ("paris", ["PARIS"]),
        ("  Paris \t", ["Paris"]),
        ("Paris.", ["Paris"]),
        ('"Paris!"', ["Paris"]),
        ("The Beatles", ["Beatles"]),
        ("Beatles", ["the Beatles"]),
        ("an  apple", ["a apple"]),
        ("Bogota", ["Bogotá"]),
        ("Bogotá", ["Bogota"]),
        ("Bogota\u0301", ["Bogotá"]),  # a combining accent
        ("Jean-Luc", ["jean luc"]),
        ("rock 'n' roll", ["rock ‘n’ roll"]),
        ("London", ["Paris", "London"]),  # an alias
        ("東京", ["東京"]),
        ("1234", ["1,234"]),
        ("1,234", ["1234"]),
        ("1234.0", ["1,234"]),
        ("1,234,567", ["1234567"]),
        ("$18", ["18"]),
        ("18", ["$18.00"]),
        ("18.", ["18"]),
        ("18%", ["18"]),
        ("007", ["7"]),
        (".5", ["0.5"]),
        ("+3", ["3"]),
        ("-5", ["-5"]),
        ("-5", ["-5.0"]),
        ("The A", ["the a"]),  # made of articles alone
        ("A", ["A"]),
        ("C++", ["C++"]),
    ],
)
def test_a_right_answer(answer, accepted):
    assert grade(answer, accepted) == grade(answer, accepted, "contains") == 1


@pytest.mark.parametrize(
    "answer, accepted",
    [
        ("", ["Paris"]),
        (" \n", ["Paris"]),
        ("...", ["Paris"]),
        ("the", ["Paris"]),
        ("", ["5"]),
        ("...", ["!!!"]),
        ("", ["..."]),
        ("Paris", []),
        ("Paris", ["London", "Rome"]),
        ("Pari", ["Paris"]),
        ("art", ["party"]),
        ("party", ["art"]),  # words, not letters
        ("New", ["New York"]),
        ("5", ["15"]),
        ("15", ["5"]),
        ("1.5", ["15"]),
        ("1234", ["12345"]),
        ("-5", ["5"]),
        ("5", ["-5"]),
        ("3.5", ["5"]),
        ("1,500", ["500"]),
        ("3, 4", ["34"]),
        ("3,4", ["34"]),  # a list, not thousands
        ("eight", ["8"]),
        ("8 or 9", ["8.9"]),
    ],
)
def test_a_wrong_answer(answer, accepted):
    assert grade(answer, accepted) == grade(answer, accepted, "contains") == 0


@pytest.mark.parametrize(
    "answer, accepted",
    [
        ("Paris, Texas", ["Paris"]),
        ("It is Paris.", ["Paris"]),
        ("the city of New York, of course", ["New York"]),
        ("The answer is 18", ["18"]),
        ("18 dollars", ["18"]),
        ("I think it is the Beatles", ["Stones", "The Beatles"]),
    ],
)
def test_contains_is_wider_than_exact(answer, accepted):
    assert grade(answer, accepted) == 0
    assert grade(answer, accepted, "contains") == 1


@given(st.text(), st.lists(st.text(), max_size=3))
def test_grading_never_fails(answer, accepted):
    assert grade(answer, accepted) in (0, 1)
    assert grade(answer, accepted) <= grade(answer, accepted, "contains")


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_integers_are_right_only_when_equal(a, b):
    assert grade(f"{a:,}", [str(a)]) == 1
    assert grade(f"{a:,}", [f"{b}.0"]) == (a == b)


@given(st.text())
@example("𝑨")  # becomes a capital only when decomposed
def test_normalising_twice_changes_nothing(text):
    assert data.normalise(data.normalise(text)) == data.normalise(text)


def test_the_answer_is_the_first_line():
    assert data.clean_answer(" Paris \nQuestion: x") == "Paris"
    assert data.clean_answer("\n\n Paris") == "Paris"
    assert data.clean_answer("Paris\r\nLyon") == "Paris"
    assert data.clean_answer("") == data.clean_answer(" \n ") == ""


# ---- confidences ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, value",
    [
        ("Confidence: 73%", 0.73),
        ("Confidence: 0%", 0.0),
        ("Confidence: 100%", 1.0),
        ("Confidence: 100.0%", 1.0),
        ("Confidence: 1%", 0.01),
        ("Confidence: 0.5%", 0.005),
        ("Confidence: 73.5%", 0.735),
        ("Confidence:73%", 0.73),
        ("Confidence:  73 %", 0.73),
        ("Confidence: 73%.", 0.73),
        ("Confidence: 73% \n", 0.73),
        ("Confidence:\n73%", 0.73),
        ("Confidence: 07%", 0.07),
        ("I saw 3 of 5 things.\nConfidence: 62%", 0.62),
        ("Perhaps 90% sure. Confidence: 62%", 0.62),
        ("", None),
        (" ", None),
        ("73%", None),
        ("73", None),
        ("Confidence:", None),
        ("Confidence: ", None),
        ("Confidence: %", None),
        ("Confidence: 73", None),
        ("Confidence 73%", None),
        ("Confidence: 101%", None),
        ("Confidence: 100.1%", None),
        ("Confidence: 1000%", None),
        ("Confidence: 99999999999999999999%", None),
        ("Confidence: -5%", None),
        ("Confidence: -0%", None),
        ("Confidence: +5%", None),
        ("Confidence: .5%", None),
        ("Confidence: 5.%", None),
        ("Confidence: 7,5%", None),
        ("Confidence: 1e1%", None),
        ("Confidence: 0x10%", None),
        ("Confidence: 60% or 70%", None),
        ("Confidence: 60-70%", None),
        ("Confidence: 60% 70%", None),
        ("Confidence: 6 0%", None),
        ("Confidence: 73%%", None),
        ("Confidence: 73% sure", None),
        ("Confidence: 73%\nQuestion: what?", None),
        ("Confidence: about 73%", None),
        ("Confidence: high", None),
        ("Confidence: nan%", None),
        ("Confidence: inf%", None),
        ("Confidence: ٧٣%", None),  # Arabic digits
        ("Confidence: ７３%", None),  # full-width digits
        ("Confidence: 7²%", None),
        ("Confidence: 73٪", None),  # Arabic percent sign
        ("Confidence: 60%\nConfidence: 60%", None),
        ("Confidence: Confidence: 60%", None),
    ],
)
def test_parse_confidence(text, value):
    assert parse_confidence(text) == (None if value is None else pytest.approx(value, abs=1e-12))


pieces = st.sampled_from(
    ["Confidence:", "Confidence", " ", "\n", "%", ".", "-", "0", "5", "73", "100", "٣", "é"]
)


@given(st.text() | st.lists(pieces).map("".join) | st.lists(pieces).map(lambda x: "Confidence:" + "".join(x)))
def test_parsing_never_fails(text):
    value = parse_confidence(text)
    assert value is None or isinstance(value, float) and 0 <= value <= 1


@given(st.decimals(0, 100, places=2))
def test_every_percentage_is_read(percent):
    assert parse_confidence(f"Confidence: {percent}%") == pytest.approx(float(percent) / 100)


# ---- prompts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompt(make_tokenizer):
    """style -> Prompt with a tokenizer that knows one token a character, "\\n\\n" and ".\\n"."""
    tokenizer = make_tokenizer(characters=sorted(set(string.printable)), chat=True)
    tokenizer.backend_tokenizer.post_processor = None
    return lambda style, **kwargs: Prompt(LM(None, tokenizer, "characters"), style, **kwargs)


def text_of(prompt, ids):
    return prompt.lm.tokenizer.decode(ids, skip_special_tokens=False)


def texts_of(prompt, parts):
    return tuple(text_of(prompt, ids) for ids in parts)


Q, A = "Who wrote Faust?", "J. W. Goethe"
ONE = (("Which is the largest ocean?", "The Pacific", "85%"),)


def test_fewshot_prompts_word_for_word(prompt):
    p = prompt("fewshot", examples=ONE)
    first = (
        "Question: Which is the largest ocean?\nAnswer: The Pacific\nConfidence: 85%\n\n"
        "Question: Who wrote Faust?\nAnswer:"
    )
    assert text_of(p, p.answer(Q)) == first
    start = f"{first} J. W. Goethe"
    assert texts_of(p, p.confidence(Q, A)) == (start, "\nConfidence:")
    assert texts_of(p, p.confidence(Q, A, reason=True)) == (start, "\nReasoning:")
    assert text_of(p, p.after_reasoning(p.lm.encode("so it is"))) == "\nConfidence:"
    assert text_of(p, p.after_reasoning(p.lm.encode("so it is\n"))) == "Confidence:"


def test_chat_prompts_turn_by_turn(prompt):
    p = prompt("chat", examples=ONE)
    shot = f"<s>[user]{data.ASK}\n\nWhich is the largest ocean?</s>[assistant]The Pacific</s>"
    ask = f"[user]{data.ASK}\n\n{Q}</s>[assistant]"
    shot += f"[user]{data.HOW_SURE}</s>[assistant]Confidence: 85%</s>"
    assert text_of(p, p.answer(Q)) == shot + ask
    start = f"{shot}{ask}{A}</s>[user]"
    assert texts_of(p, p.confidence(Q, A)) == (start, f"{data.HOW_SURE}</s>[assistant]Confidence:")
    assert texts_of(p, p.confidence(Q, A, True)) == (start, f"{data.THINK} {data.HOW_SURE}</s>[assistant]")


@pytest.mark.parametrize("style", ["fewshot", "chat"])
@pytest.mark.parametrize("reason", [False, True])
def test_the_turn_has_the_same_tokens_for_every_answer(prompt, style, reason):
    """Also where the tokenizer would join the last character of the answer and the first one of the turn."""
    p = prompt(style)
    answers = ("Goethe", "Goethe.", "", "He did\n", data.HOW_SURE)
    assert len({tuple(p.confidence(Q, answer, reason)[1]) for answer in answers}) == 1


@pytest.mark.parametrize("style", ["fewshot", "chat"])
def test_prompts_with_the_examples(prompt, style):
    p = prompt(style)
    answer, confidence = text_of(p, p.answer(Q)), "".join(texts_of(p, p.confidence(Q, A)))
    assert Q in answer and Q in confidence and A in confidence
    assert answer.endswith("Answer:" if style == "fewshot" else "[assistant]")
    assert confidence.endswith("Confidence:")
    for question, reply, percent in EXAMPLES:
        for text in (answer, confidence):
            assert question in text and reply in text and f"Confidence: {percent}" in text
    assert len({c for _, _, c in EXAMPLES}) == len(EXAMPLES)
    for *_, percent in EXAMPLES:  # what the examples show is what is parsed
        assert parse_confidence(f"Confidence: {percent}") == float(percent[:-1]) / 100


@pytest.mark.parametrize("style", ["fewshot", "chat"])
def test_prompts_share_their_beginning(prompt, style):
    p = prompt(style)
    a, b = p.answer("Who wrote Faust?"), p.answer("What is 2 + 3?")
    shared = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    assert text_of(p, a[shared:]).startswith("o wrote Faust?")  # "Wh" is common too
    assert shared > 0.8 * len(a)


@pytest.mark.parametrize("style", ["fewshot", "chat"])
@pytest.mark.parametrize("reason", [False, True])
def test_the_second_turn_goes_on_where_the_first_one_ends(prompt, style, reason):
    p = prompt(style)
    first, (context, _) = p.answer(Q), p.confidence(Q, A, reason)
    assert context[: len(first)] == first
    assert text_of(p, context[len(first) :]) == (f" {A}" if style == "fewshot" else f"{A}</s>[user]")


def test_zero_shot(prompt):
    p = prompt("fewshot", examples=ONE).zero_shot()  # there is a template
    ask = f"[user]{data.ASK}\n\n{Q}</s>[assistant]"
    assert texts_of(p, p.confidence(Q, A)) == (
        f"<s>{ask}{A}</s>[user]", f"{data.HOW_SURE}</s>[assistant]Confidence:",
    )  # fmt: skip


def test_true_or_false(prompt):
    p = prompt("fewshot", examples=(*ONE, ("Which is the smallest?", "The Atlantic", "5%"))).true_or_false()
    assert texts_of(p, p.confidence(Q, A)) == (
        "Question: Which is the largest ocean?\nAnswer: The Pacific\nTrue or false: True\n\n"
        "Question: Which is the smallest?\nAnswer: The Atlantic\nTrue or false: False\n\n"
        f"Question: {Q}\nAnswer: {A}",
        "\nTrue or false:",
    )
    p = prompt("chat").true_or_false()
    assert texts_of(p, p.confidence(Q, A))[1].endswith("Reply True or False.</s>[assistant]True or false:")


def test_special_tokens_occur_once(make_tokenizer):
    characters = sorted(set(string.printable))
    lm = LM(None, make_tokenizer(characters=characters, chat=True, wrap=True), "characters")
    assert Prompt(lm, "chat").answer(Q).count(1) == 1  # the template brings its own <s>
    assert Prompt(lm, "fewshot").answer(Q).count(1) == 1  # raw text gets the tokenizer's
    assert 1 not in Prompt(lm, "fewshot").after_reasoning([])


def test_a_template_that_would_think_first_is_told_not_to(make_tokenizer):
    tokenizer = make_tokenizer(characters=sorted(set(string.printable)), chat=True)
    tokenizer.chat_template += "{% if enable_thinking is defined and not enable_thinking %}(no thoughts){% endif %}"
    prompt = Prompt(LM(None, tokenizer, "characters"), "chat")
    assert text_of(prompt, prompt.answer(Q)).endswith("(no thoughts)")
    assert text_of(prompt, prompt.confidence(Q, "42")[1]).endswith("(no thoughts)Confidence:")


def test_chat_needs_a_template(make_tokenizer):
    lm = LM(None, make_tokenizer(characters=sorted(set(string.printable))), "characters")
    with pytest.raises(ValueError, match="chat.template"):
        Prompt(lm, "chat").answer(Q)


# ---- JSONL ---------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    def write(*lines, name="mine.jsonl"):
        path = tmp_path / name
        text = "\n".join(x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for x in lines)
        path.write_text(text, encoding="utf-8")
        return path

    return write


GOOD = {"question": "Who?", "answers": ["Me"]}


def test_jsonl_is_read(write):
    full = {"question": " Où? ", "answers": ["là", "ici"], "id": 7, "family": "place", "more": 1}
    path = write(GOOD, "", full)
    assert from_jsonl(path) == [
        Question("mine-1", "Who?", ("Me",), "mine"),
        Question("7", "Où?", ("là", "ici"), "place"),
    ]
    assert from_jsonl(str(path)) == from_jsonl(path)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x7f", "é"])
def test_a_line_ends_at_a_newline_only(write, separator):
    """JSON allows these raw inside a string, and Wikipedia's text holds some."""
    path = write({"question": f"Who{separator}is it?", "answers": ["Me"]}, GOOD)
    assert [q.question for q in from_jsonl(path)] == [f"Who{separator}is it?", "Who?"]


def test_jsonl_with_windows_line_ends(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"question": "Who?", "answers": ["Me"]}\r\n' * 2)
    assert [q.id for q in from_jsonl(path)] == ["mine-1", "mine-2"]


@pytest.mark.parametrize(
    "bad, message",
    [
        ('{"question": "Who?"', "not JSON"),
        ("Who?", "not JSON"),
        ("[1, 2]", "question"),
        ('"Who?"', "question"),
        ("null", "question"),
        ({"answers": ["Me"]}, "question"),
        ({"question": " ", "answers": ["Me"]}, "question"),
        ({"question": 3, "answers": ["Me"]}, "question"),
        ({"question": None, "answers": ["Me"]}, "question"),
        ({"question": "Who?"}, "answers"),
        ({"question": "Who?", "answers": []}, "answers"),
        ({"question": "Who?", "answers": "Me"}, "answers"),
        ({"question": "Who?", "answers": [3]}, "answers"),
        ({"question": "Who?", "answers": ["Me", " "]}, "answers"),
        ({"question": "Who?", "answers": None}, "answers"),
    ],
)
def test_a_bad_line_is_named(write, bad, message):
    path = write(GOOD, "", bad, GOOD)
    with pytest.raises(ValueError, match=message) as error:
        from_jsonl(path)
    assert f"{path}, line 3:" in str(error.value)


def test_bad_files_are_named(tmp_path, write):
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"question": "Où?", "answers": ["là"]}'.encode("latin-1"))
    bad = {
        latin: "UTF-8",
        write(name="empty.jsonl"): "no questions",
        write("", " ", name="blank.jsonl"): "no questions",
        write({**GOOD, "id": "x"}, GOOD, {**GOOD, "id": "x"}, name="twice.jsonl"): "'x' occurs twice",
    }
    for path, message in bad.items():
        with pytest.raises(ValueError, match=message) as error:
            from_jsonl(path)
        assert str(path) in str(error.value)


# ---- the hub -------------------------------------------------------------------------------------

# two rows of each data set, with all of its columns
ROWS = {
    "trivia_qa": [
        {
            "question": question, "question_id": "tc_2", "question_source": "http://www.triviacountry.com/",
            "entity_pages": {"doc_source": [], "filename": [], "title": [], "wiki_context": []},
            "search_results": {"description": [], "filename": [], "rank": [], "title": [], "url": []},
            "answer": {
                "aliases": aliases, "normalized_aliases": [a.lower() for a in aliases],
                "matched_wiki_entity_name": "", "normalized_matched_wiki_entity_name": "",
                "normalized_value": value.lower(), "type": "WikipediaEntity", "value": value,
            },
        }
        for question, value, aliases in [
            ("Who was the man behind The Chipmunks?", "David Seville", ["David Seville", "Ross Bagdasarian"]),
            ("Which city is the capital of Italy?", "Rome", []),
        ]
    ],
    "nq_open": [
        {"question": "where did they film hot tub time machine", "answer": ["Fernie Alpine Resort"]},
        {"question": "who plays gram on the young and the restless", "answer": ["Max Shippee", "M. Shippee"]},
    ],
    "web_questions": [
        {"url": "http://www.freebase.com/view/en/jamaica", "question": "what does jamaican people speak?",
         "answers": ["Jamaican Creole English Language", "Jamaican English"]},
        {"url": "http://www.freebase.com/view/en/james_k_polk", "question": " what did james k polk do? ",
         "answers": ["Governor of Tennessee"]},
    ],
    "gsm8k": [
        {"question": "How much does Janet make every day?",
         "answer": "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes 9 * 2 = $<<9*2=18>>18.\n#### 18"},
        {"question": "How much profit did he make?", "answer": "200,000-130,000=$70,000\n#### 70,000"},
    ],
    "sciq": [
        {"question": "What do cells divide by?", "distractor3": "fusion", "distractor1": "osmosis",
         "distractor2": "budding", "correct_answer": "mitosis", "support": "Cells divide by mitosis."},
        {"question": "What is NaCl?", "distractor3": "sugar", "distractor1": "lye", "distractor2": "soda",
         "correct_answer": "salt", "support": ""},
    ],
}  # fmt: skip
READ = {
    "trivia_qa": [("David Seville", "Ross Bagdasarian"), ("Rome",)],
    "nq_open": [("Fernie Alpine Resort",), ("Max Shippee", "M. Shippee")],
    "web_questions": [("Jamaican Creole English Language", "Jamaican English"), ("Governor of Tennessee",)],
    "gsm8k": [("18",), ("70,000",)],
    "sciq": [("mitosis",), ("salt",)],
}
SOURCE = {
    "trivia_qa": ("mandarjoshi/trivia_qa", "rc.nocontext", {"train", "validation"}),
    "nq_open": ("google-research-datasets/nq_open", None, {"train", "validation"}),
    "web_questions": ("stanfordnlp/web_questions", None, {"train", "test"}),
    "gsm8k": ("openai/gsm8k", "main", {"train", "test"}),
    "sciq": ("allenai/sciq", None, {"train", "validation", "test"}),
}


@pytest.mark.parametrize("name", HUB)
def test_hub_rows_are_read(name, tmp_path, write, monkeypatch):
    local = datasets.load_dataset(
        "json", data_files=str(write(*ROWS[name])), split="train", cache_dir=str(tmp_path / "cache")
    )

    seen = []

    def load_dataset(path, config=None, *, split):
        source, only_config, splits = SOURCE[name]
        assert (path, config) == (source, only_config) and split in splits
        seen.append(split)
        return local

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    questions = data.load(name)
    assert data.load(name, held_out=True) == questions
    assert seen[0] == "train" != seen[1]  # nothing that was trained on is called unseen
    assert {q.source for q in questions} == {name}
    assert (
        [replace(q, source="") for q in questions] == from_hub(name, rows=local) == from_hub(name, rows=ROWS[name])
    )
    assert [q.question for q in questions] == [row["question"].strip() for row in ROWS[name]]
    assert [q.answers for q in questions] == READ[name]
    assert [q.id for q in questions] == [f"{name}-0", f"{name}-1"]
    assert {q.family for q in questions} == {name}
    assert all(grade(q.answers[0], q.answers) == 1 for q in questions)


# ---- names ---------------------------------------------------------------------------------------


def test_names(write):
    path = write(GOOD)
    facts = data.load("facts")
    assert len(facts) > 100 and len({q.id for q in facts}) == len(facts)
    one, two, *_ = (f"facts:{family}" for family in sorted({q.family for q in facts}))
    assert data.load(one) == [replace(q, source=one) for q in facts if f"facts:{q.family}" == one]
    assert data.load(f"{two},{path},{one}") == data.load(two) + data.load(str(path)) + data.load(one)
    assert data.load(str(path)) == [replace(q, source=str(path)) for q in from_jsonl(path)]


def test_an_id_belongs_to_one_question(tmp_path):
    """Samples and seeds are kept by id: two files of one name do not share them."""
    for folder, question in [("a", "Who?"), ("b", "Where?")]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.jsonl").write_text(json.dumps({"question": question, "answers": ["x"]}))
    found = data.load(f"{tmp_path}/a/mine.jsonl,{tmp_path}/b/mine.jsonl")
    assert [q.id for q in found] == [f"{tmp_path}/{folder}/mine.jsonl: mine-1" for folder in "ab"]
    with pytest.raises(ValueError, match="twice"):
        data.load("facts:capitals,facts:capitals")


def test_null_for_an_id_or_a_family_is_none(write):
    found = from_jsonl(write({**GOOD, "id": None, "family": None}, {**GOOD, "id": None}, name="two.jsonl"))
    assert [(q.id, q.family) for q in found] == [("two-1", "two"), ("two-2", "two")]


def test_every_fact_is_right_by_its_own_answers():
    assert all(grade(a, q.answers) == 1 for q in data.load("facts") for a in q.answers)


def test_blanks_after_a_comma(write):
    path = write(GOOD)
    assert data.load(f"{path}, facts") == data.load(f"{path},facts")


@pytest.mark.parametrize(
    "name, message",
    [
        ("trivia-qa", "did you mean 'trivia_qa'"),
        ("fact", "did you mean 'facts'"),
        ("gsm8", "did you mean 'gsm8k'"),
        ("facts,scig", "'scig'; did you mean 'sciq'"),
        ("zzzzzz", "choose from .*nq_open"),
        ("no/such/file.jsonl", "no/such/file.jsonl"),
        ("facts:nowhere", "nowhere.*capitals"),
        ("", "choose from"),
        ("facts/fact.jsonl", "did you mean 'facts/facts.jsonl'"),
        ("facts:capital", "did you mean 'capitals'"),
    ],
)
def test_an_unknown_name(name, message):
    with pytest.raises(ValueError, match=message):
        data.load(name)


def test_a_question_that_is_asked_twice_counts_once(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answers": [a]}) + "\n" for q, a in ["ax", "by", "az", "cw"]))
    assert [(q.question, *q.answers) for q in data.load(str(path))] == [("a", "x"), ("b", "y"), ("c", "w")]


# ---- splitting -----------------------------------------------------------------------------------


def questions(n, source=""):
    return [Question(f"{source}q{i}", f"{i}?", ("x",), "f", source) for i in range(n)]


def ids(parts):
    return {name: [q.id for q in part] for name, part in parts.items()}


def test_split_is_disjoint_and_has_the_sizes():
    qs = questions(100)
    before = copy.copy(qs)
    parts = ids(split(qs, {"a": 20, "b": 30, "c": 7}, seed=0))
    assert list(parts) == ["a", "b", "c"] and [len(p) for p in parts.values()] == [20, 30, 7]
    everything = sum(parts.values(), [])
    assert len(set(everything)) == 57 and set(everything) <= {q.id for q in qs}
    assert parts["a"] != [f"q{i}" for i in range(20)]  # shuffled
    assert qs == before


def test_every_question_can_be_dealt():
    parts = ids(split(questions(50), {"a": 20, "b": 30}, seed=3))
    assert sorted(parts["a"] + parts["b"]) == sorted(q.id for q in questions(50))


def test_split_is_decided_by_its_seed():
    qs = questions(40)
    first = ids(split(qs, {"a": 10, "b": 20}, seed=0))
    assert ids(split(qs, {"a": 10, "b": 20}, seed=0)) == first
    assert ids(split(qs, {"a": 10, "b": 20}, seed=1)) != first


def shares(parts):
    return {name: [sum(q.source == s for q in part) for s in "xyz"] for name, part in parts.items()}


@pytest.mark.parametrize("seed", range(3))
def test_sources_have_equal_shares(seed):
    """A large source does not drown a small one, and a source that is used up leaves its share to the others."""
    qs = questions(400, source="x") + questions(30, source="y") + questions(60, source="z")
    enough = shares(split(qs, {"a": 30, "b": 20, "c": 25}, seed))
    assert np.sum(list(enough.values()), axis=0).tolist() == [25, 25, 25]
    scarce = np.sum(list(shares(split(qs, {"a": 30, "b": 29, "c": 41}, seed)).values()), axis=0)
    assert scarce.tolist() == [35, 30, 35]


def test_parts_are_alike():
    """A small source is spread over all parts in proportion to their sizes, whichever part comes first."""
    qs = questions(300, source="x") + questions(30, source="y") + questions(60, source="z")
    sizes = {"a": 30, "b": 50, "c": 20, "d": 50}  # x and z have 60 each
    counts = [shares(split(qs, sizes, seed)) for seed in range(200)]
    for name, size in sizes.items():
        found = np.array([c[name] for c in counts])  # (seeds, 3)
        assert (found.sum(1) == size).all()
        want = size * np.array([0.4, 0.2, 0.4])
        sd = np.sqrt(want * (1 - want / size) * (150 - size) / 149)  # of a draw without replacement
        assert (np.abs(found - want) < 4.5 * sd).all()
        assert (np.abs(found.mean(0) - want) < 4.5 * sd / 200**0.5).all()
        assert (found.std(0) > 0.5 * sd).all()  # dealt at random


@pytest.mark.parametrize("sizes", [{"a": 11}, {"a": 6, "b": 5}, {"a": 10, "b": 1}, {"a": 1, "b": 10}])
def test_too_few_questions(sizes):
    with pytest.raises(ValueError, match="10 questions are too few"):
        split(questions(10), sizes, seed=0)


def test_exactly_enough_questions():
    assert [len(p) for p in split(questions(10), {"a": 6, "b": 4}, seed=0).values()] == [6, 4]


# ---- the files of the tables ---------------------------------------------------------------------


def test_the_question_files_are_made_from_the_hub(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(data.__file__).parent / "scripts")
    import fetch_questions as script

    local = {SOURCE[name][0]: ROWS[name] for name in ("trivia_qa", "gsm8k")}
    local["stanfordnlp/web_questions"] = [{"question": f" who is {i}?", "answers": ["1,0", "b"]} for i in range(4000)]
    splits = {}

    def load_dataset(path, config, *, split):
        splits[path] = split
        return local[path]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("sys.argv", ["fetch_questions.py", "--out", str(tmp_path)])
    script.main()
    said = capsys.readouterr().out
    assert said.count("other questions than the published ones") == 3 and "same" not in said
    assert sorted(splits.values()) == ["test", "train", "train"] and splits["openai/gsm8k"] == "test"
    trivia, web, gsm8k = (data.from_jsonl(tmp_path / f"{file}.jsonl") for file in script.SETS)
    assert [q.answers for q in gsm8k] == [("18",), ("70000",)] and [q.id for q in gsm8k] == ["gsm8k-0", "gsm8k-1"]
    assert [(q.question, q.answers) for q in trivia] == [
        (row["question"], answers) for row, answers in zip(ROWS["trivia_qa"], READ["trivia_qa"], strict=True)
    ]
    # as many as were published, in that order: the ids, which are places in the split, begin and end like this
    assert [q.id for q in web[:5]] == ["wqr000001", "wqr000002", "wqr000003", "wqr000005", "wqr000006"]
    assert len({q.id for q in web}) == 3778 and [q.id for q in web[-2:]] == ["wqr003740", "wqr003760"]
    assert web[0].question == "Who is 1?" and web[0].answers == ("1,0", "b")

    # what is there is kept, and compared with what was published
    path = tmp_path / "gsm8k_test.jsonl"
    path.write_text("mine")
    *how, _ = script.SETS["gsm8k_test"]
    monkeypatch.setitem(script.SETS, "gsm8k_test", (*how, hashlib.sha256(b"mine").hexdigest()))
    script.main()
    assert path.read_text() == "mine" and f"{path}: same as the published ones" in capsys.readouterr().out

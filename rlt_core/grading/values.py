"""Single values in answers: numbers, quantities with units, expressions, words.

Expressions stay LaTeX: math-verify reads them only when a comparison needs it.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from rlt_core.grading.units import Unit, read_unit

Kind = Literal["scalar", "words", "set", "list", "tuple", "region", "matrix", "time", "base",
               "assignment", "relation"]  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """A typed answer."""

    kind: Kind
    text: str
    """Its normalized spelling."""
    parts: tuple[Any, ...] = ()
    """By kind: scalar: Fraction or LaTeX, whether it is in percent, unit; words: the words; set (in
    braces), list (unordered) and tuple: answers; matrix: shape, then answers; region: intervals
    (low, closed, high, closed); time: hour, minute, second, half of the day; base: digits, base;
    assignment: name, value; relation: operator, left, right."""


_NUMBER = re.compile(r"(?P<sign>[-+]?) ?(?:"
    r"(?P<whole>\d+) ?(?:\\frac\{(?P<mixed>\d+)\}\{(?P<into>\d+)\})|"
    r"\\frac\{(?P<top>-?[\d.]+)\}\{(?P<bottom>-?[\d.]+)\}|"
    r"(?P<integer>\d*)\.(?P<fixed>\d*)(?:\\(?:overline|bar|dot)\{?|\()(?P<repeated>\d+)[)}]?|"
    r"(?P<decimal>\d+\.?\d*|\.\d+)(?:/(?P<over>\d+\.?\d*)|[eE](?P<e>[-+]?\d{1,3})|"
    r"(?:\\times|\\cdot|\*) ?10\^\{?(?P<exponent>[-+]?\d{1,3})\}?)?)")  # fmt: skip
THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!,?\d)")
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
           "trillion": 10**12}  # fmt: skip
SPOKEN = {word: n for n, word in enumerate((
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"
))}  # fmt: skip
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
         "eighty": 80, "ninety": 90}  # fmt: skip
SPOKEN |= _TENS | {
    f"{ten}-{one}": _TENS[ten] + n for ten in _TENS for one, n in list(SPOKEN.items())[1:10]
}
_CURRENCY = re.compile(r"\\(dollar|euro|pounds|yen|rupee)(?![A-Za-z]) ?")
_UNIT = re.compile(
    r"(.*?[^\s{(])\s*((?:\\text\{(?:[^{}]|\{[^{}]*\})*\}|\^\\circ ?[CF]?(?![A-Za-z])|"
    r"\\frac\{\\text|\\mu ?(?=\\text|[msL]\b)|[kM]?\\Omega)(?:\\text|\\cdot|[^\\=+*])*)"
)
_PLAIN_UNIT = re.compile(
    r"([-+]?(?:[\d.,/eE+-]*[\d.]|.*\}))( ?)([A-Za-zμΩ°Å](?:\\cdot|[\w .^/{}-])*)"
)
_GLUED = ("mm", "cm", "km", "mg", "kg", "ml", "ft", "in", "hr", "lb", "oz")
"""Units of two small letters that count without a space; others may be a product, as in `3ns`."""
MONTH = re.compile(r"\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b", re.I)
PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{4,}|[A-Za-z]{2,} [A-Za-z]{2,}")
_SHORT_WORDS = ("no", "yes", "odd", "all", "any")


def words(text: str) -> Answer:
    """Return a text as words, without letter case, enclosing brackets and article."""
    plain = re.sub(r"\\text|[{}$]", " ", text).replace("\\ ", " ").casefold()
    plain = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", " ".join(plain.split()).strip(" .()"))
    plain = re.sub(r"^(?:the|an|a) (?=\w{2})", "", plain)
    plain = re.sub(r"^(yes|no|true|false)[,;.] .*", r"\1", plain)
    plain = "does not exist" if plain == "dne" else plain
    if MONTH.search(plain) and re.search(r"\d", plain):
        plain = " ".join(sorted(re.findall(r"\w+", plain)))
    return Answer("words", text, (re.sub(r"\s*([^\w\s])\s*", r"\1", plain),))


def number(text: str) -> Fraction | None:
    """Read one exact number: `-7`, `3/4`, `3\\frac{1}{2}`, `1.2\\times 10^5`, `0.\\bar3`."""
    match = _NUMBER.fullmatch(THOUSANDS.sub(lambda found: found[0].replace(",", ""), text).strip())
    if match is None or text.count(".") > 2:
        return None
    try:
        if match["into"]:
            value = int(match["whole"]) + Fraction(int(match["mixed"]), int(match["into"]))
        elif match["bottom"]:
            value = Fraction(match["top"]) / Fraction(match["bottom"])
        elif match["repeated"]:
            fixed, repeated = match["fixed"], match["repeated"]
            whole = Fraction(int(match["integer"] + fixed or 0), 10 ** len(fixed))
            value = whole + Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(fixed))
        else:
            value = Fraction(match["decimal"].removesuffix(".")) / Fraction(match["over"] or 1)
            value *= Fraction(10) ** int(match["e"] or match["exponent"] or 0)
    except (ValueError, ZeroDivisionError):
        return None
    return -value if match["sign"] == "-" else value


def scalar(text: str) -> Answer:
    """Return a number or an expression with its unit; words if it is neither."""
    exact = number(text)
    if exact is not None:
        return Answer("scalar", text, (exact, False, None))
    body, percent, unit = _measured(text)
    exact = _spoken(body)
    head, _, scale = body.rpartition(" ")
    if scale.lower() in _SCALES and (times := _spoken(head)) is not None:
        exact = times * _SCALES[scale.lower()]
    if exact is not None:
        return Answer("scalar", text, (exact, percent, unit))
    letters = re.sub(r"\\(?:text\{[^{}]*\}|(?:begin|end)\{\w*matrix\}|[A-Za-z]+)", " ", body)
    odd = r"\text" in body or re.fullmatch(r"[\d ]+ [\d ]+|[A-Z]{3,}", body)
    if odd or PROSE.search(letters) or body.lower() in _SHORT_WORDS:
        return words(text)
    return Answer("scalar", text, (body, percent, unit))


def _spoken(text: str) -> Fraction | None:
    word = SPOKEN.get(text.casefold().replace(" ", "-"))
    return number(text) if word is None else Fraction(word)


def _measured(text: str) -> tuple[str, bool, Unit | None]:
    """Return a quantity without its unit, whether that is percent, and the unit if it is known."""
    body = re.sub(r"^(?:(?:[A-Za-z] ?)?\\approx|approximately|about|roughly|exactly) ?", "", text)
    body = body.split(r"\approx")[0].strip() or body
    unit: Unit | None = None
    if (match := _CURRENCY.search(body)) and re.search(r"\d", body):
        unit, body = read_unit(match[1]), _CURRENCY.sub("", body).strip()
    percent = re.fullmatch(r"(.*?) ?(?:\\?%|\\text\{ ?per ?cent ?\}|per ?cent)", body)
    if percent:
        return percent[1], True, None
    quantity = re.search(r"\d|\\pi|\\sqrt", body) is not None
    if quantity and not re.search(r"\\(?:sin|cos|tan|sec|csc|cot)(?![A-Za-z])", body):
        match = _UNIT.fullmatch(body)
        if match and re.search(r"\d|\\pi|\\sqrt", match[1]):
            return _measured_by(match[1], match[2], unit)
        match = _PLAIN_UNIT.fullmatch(body)
        if match and number(match[1]) is not None:
            first = match[3].split()[0]
            known = first.lower() in _SCALES or read_unit(match[3]) is not None
            long = match[2] == " " and re.search(r"[A-Za-z]{3}", match[3]) is not None
            glued = re.fullmatch("[a-z]{2}", match[3]) is None or match[3] in _GLUED
            one = match[2] == " " and match[3] in "mgshLJNWKVÅΩ"
            if long or (known and (one if len(match[3]) == 1 else match[2] or glued)):
                return _measured_by(match[1], match[3], unit)
    return body, False, unit


def _measured_by(body: str, text: str, unit: Unit | None) -> tuple[str, bool, Unit | None]:
    text = re.sub(r"\\text|[{}]", " ", text).strip()
    first, _, rest = text.partition(" ")
    if first.lower() in _SCALES:
        body, text = f"{body} {first}", rest
    return body.strip(), False, unit or read_unit(text)

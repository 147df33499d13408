r"""Normalize the spelling of answers: LaTeX, Unicode and plain text become plain LaTeX.

`½`, `\tfrac12` and `\frac{1}{2}` become one text, and so do `x²` and `x^2`, `12\,345` and `12345`,
full-width and ASCII digits. `answers.py` interprets the result.
"""

# ruff: noqa: RUF001
import re
import unicodedata
from functools import lru_cache
from typing import Any

_SYMBOLS = str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "÷": r"\div ", "∕": "/", "⁄": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ",
    "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ",
    "∅": r"\emptyset ", "°": r"^\circ ", "º": r"^\circ ", "±": r"\pm ", "∓": r"\mp ",
    "√": r"\sqrt ", "≈": r"\approx ", "∠": r"\angle ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}", "…": r"\ldots ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ",
    "θ": r"\theta ", "φ": r"\phi ", "λ": r"\lambda ", "μ": r"\mu ", "σ": r"\sigma ",
    "ω": r"\omega ", "€": r"\euro ", "£": r"\pounds ", "¥": r"\yen ", "₹": r"\rupee ",
    "¢": " cents", "∛": r"\sqrt[3]", "✓": "", "✔": "",
    "⟨": "(", "⟩": ")", "’": "'", "\u2009": r"\,", "\u202f": r"\,", "\u00a0": r"\,",
    "\u200b": "", "\ufeff": "", "\0": "",
})  # fmt: skip
_SCRIPTS = {"^": "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "_": "₀₁₂₃₄₅₆₇₈₉₊₋"}
_NAMES = r"pi|theta|alpha|beta|infty|sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp"
_SPACES = r"(?:\\[,;: ]|~|\\thinspace(?![A-Za-z]))"

_COMMANDS = {name: new for names, new in {
    "langle lparen": "(", "rangle rparen": ")", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[",
    "rbrack": "]", "dfrac tfrac cfrac nicefrac sfrac": r"\frac", "varnothing O": r"\emptyset",
    "lt": "<", "gt": ">", "leqslant leqq leq": r"\le ", "geqslant geqq geq": r"\ge ",
    "neq": r"\ne ", "lor vee": " or ", "land wedge": " and ", "simeq thickapprox": r"\approx ", 
    "quad qquad": " ", "lvert rvert vert": "|",
    "displaystyle textstyle limits notag negthinspace therefore checkmark bf it sf tt": "",
    "tiny small normalsize large Large LARGE huge Huge": "",
}.items() for name in names.split()}  # fmt: skip
"""LaTeX commands and their replacement."""
# In this order; each once.
_RULES: list[tuple[re.Pattern[str], Any]] = [(re.compile(pattern), new) for pattern, new in [
    (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?", ""),
    (r"\\!\s*", ""), (r"\{([,:])\}", r"\1"),
    (r"(?<![\d.,])\d{1,3}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})(?![\d.,])",
     lambda number: number[0].replace(".", "").replace(",", ".")),  # 1.234,5 and 1.234.567
    (r"(?<![\d.,])(\d+),(\d\d)(?= ?\\euro)", r"\1.\2"),
    (r"(?<=[\d,])" + _SPACES + r"+(?=\d{3}(?!\d))", ""),
    (r"(?<!\\)" + _SPACES, " "),
    (r"\\(?:mathrm|operatorname|rm)\s*\{\s*([a-z])\s*\}", r"\1"),
    (r"\\(?:mathbf|boldsymbol|mathit|bm|vec|hat|underline)\s*\{([^{}]*)\}", r"\1"),
    (r"\\(?:overline|overrightarrow)\s*\{([A-Z]{2,})\}", r"\1"),
    (r"\\(?:text)?color\s*\{[a-z]*\}", ""),
    (r"\{?\s*(\w+)\s*\\choose\s*(\w+)\s*\}?", r"\\binom{\1}{\2}"),
    (r"\\equiv(?![A-Za-z])", "="),
    (r"\s*(?:\\[pb]?mod|\(mod)(?![A-Za-z])\s*\{?\d+\}?\)?$", ""),
    (r"^<([^<>]+,[^<>]+)>$", r"(\1)"),
    (r"^(\d+ ?[a-z]+) (\d+(?:\.\d+)? ?[a-z]+)$", r"\1, \2"),
    (r"\\log_\{?e\}?(?![A-Za-z])", r"\\ln "),
    (r"(?<![A-Za-z])(?:negative|minus) (?=[\d\\])", "-"),
    (r"^US(?=\\dollar)", ""), (r"^USD ?(?=\d)", r"\\dollar "),
    (r"^(?:Rs\.?|INR) ?(?=\d)", r"\\rupee "),
    (r"(\.\d{0,9}?)(\d{1,9}?)\2{2,}(?:\.{2,3}|\\[lc]?dots)", r"\1\\overline{\2}"),
    (r"\\(?:text(?:bf|rm|it|normal|sf|tt)?|mathrm|mbox|operatorname\*?|hbox)\s*\{", r"\\text{"),
    (r"\\text\{\s*\}", " "),
    (r"\\text\{\s*,?\s*(and|or)\s*\}", r" \1 "),
    (r"\\text\{(,\s)\s*\}", r"\1"),
    (r"\\frac\s*([0-9a-z])\s*([0-9a-z])", r"\\frac{\1}{\2}"),
    (r"\\frac\s*([0-9a-z])\s*\{", r"\\frac{\1}{"),
    (r"\\frac\s*(\{[^{}]*\})\s*([0-9a-z])", r"\\frac\1{\2}"),
    (r"\\frac\s*(\{[^{}]*\})\s*\{", r"\\frac\1{"),
    (r"\^\s*\{?\s*(?:\\circ|\\degree|\\text\{\s*o\s*\})\s*\}?|\\degrees?(?![A-Za-z])", r"^\\circ "),
    ("<=", r"\\le "), (">=", r"\\ge "), ("!=", r"\\ne "), ("~=", r"\\approx "),
    (r"(?<![\\A-Za-z])(?:\+\s*infinity|\+?\binfinity|oo)(?![A-Za-z])", r"\\infty "),
    (r"(?<![\\A-Za-z])(" + _NAMES + r")(?![A-Za-z])", r"\\\1 "),
    (r"\+\s*\\infty", r"\\infty"),
    (r"\*\*", "^"),
    (r"\\sqrt\s+(?=[\[{])", r"\\sqrt"),
    (r"\\sqrt\s+(\d+(?:\.\d+)?|[A-Za-z]|\\pi(?![A-Za-z]))", r"\\sqrt{\1}"),
    (r"\\sqrt(\[\d+\])?\s*([0-9A-Za-z])(?![A-Za-z])", r"\\sqrt\1{\2}"),
    (r"\^\s*([-+]?\d{2,}|[-+]\d)", r"^{\1}"),
    (r"\^\s*\{\s*([0-9A-Za-z])\s*\}(?!\d)", r"^\1"),
    (r"(?<=[\d.]) ?[xX] ?(?=10\^)", r"\\times "), (r"\+/-", r"\\pm "),
    (r"(?<=[)\]]) ?U ?(?=[(\[])", r"\\cup "),
    (r"^(\d+) out of (\d+)$", r"\\frac{\1}{\2}"),
    (r"^(\d+) ?(?:\\text\{ ?to ?\}|to) ?(\d+)$", r"\1:\2"),
    (r"^(?:12(?::00)? ?)?(?:\\text\{)?noon\}?$", "12:00 pm"),
    (r"^(?:12(?::00)? ?)?(?:\\text\{)?midnight\}?$", "12:00 am"),
    (r"\\mathbb ([A-Z])", r"\\mathbb{\1}"),
    (r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),
    (r"(?<![\d.])(\d+)\s+(?=\\frac\{\d+\}\{\d+\})", r"\1"),
    (r"\s+", " "),
]]  # fmt: skip
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"),
             ("__", "__"), ("*", "*"))  # fmt: skip
_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z])")
_SPACED_THOUSANDS = re.compile(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_BARE_ARGUMENT = re.compile(r"(?:\\sqrt|\^)\s*\(")
_TIGHT = re.compile(r"(?<=\w) (?!\w)|(?<![\w,]) ")


def closing(text: str, start: int, limit: int | None = None) -> int:
    """Return the position of the bracket that closes the one at `start`, before `limit`; -1 if
    there is none. Only brackets of its kind count, and no escaped ones."""
    opened, closed, depth, i = text[start], {"(": ")", "[": "]", "{": "}"}[text[start]], 0, start
    while i < (len(text) if limit is None else limit):
        if text[i] == "\\":
            i += 2
            continue
        depth += (text[i] == opened) - (text[i] == closed)
        if not depth:
            return i
        i += 1
    return -1


def unwrapped(text: str) -> str:
    """Return the text without the marks around all of it, such as `$…$` or `**…**`, and without a
    final full stop."""
    while True:
        before = text
        text = text.strip().lstrip("=: ").rstrip(",;\\ ")
        text = text if text.endswith("..") else text.removesuffix(".").strip()
        for opened, closed in _WRAPPERS:
            inner = text[len(opened) : -len(closed)]
            if (
                len(text) > len(opened) + len(closed)
                and text.startswith(opened)
                and text.endswith(closed)
                and not text.endswith("\\" + closed)
                and opened not in inner
            ):
                text = inner
        if text.startswith("{") and closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        if text == before:
            return text


def _ascii(text: str) -> str:
    for mark, digits in _SCRIPTS.items():
        plain = str.maketrans(digits, "0123456789+-")
        text = re.sub(f"[{digits}]+", lambda run: f"{mark}{{{run[0].translate(plain)}}}", text)  # noqa: B023
    text = re.sub(r"[¼-¾⅐-⅞]", lambda one: _fraction(one[0]), text).translate(_SYMBOLS)
    return unicodedata.normalize("NFKC", text)


def _fraction(character: str) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", character).partition("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}"


@lru_cache(maxsize=4096)
def normalized(text: str) -> str:
    r"""Return the text in its one spelling. Currency signs become commands (`\dollar`)."""
    text = unwrapped(_ascii(text))
    if "matrix" not in text and "array" not in text and "cases" not in text:
        text = _DOUBLED.sub(r"\\", text)
    text = text.replace(r"\$", r"\dollar ")
    text = text.replace("$", "" if text.count("$") % 2 == 0 else r"\dollar ")
    text = re.sub(r"\*\*(.+?)\*\*", r"\1", text) if text.count("**") == 2 and " " in text else text
    text = re.sub(r"\\([A-Za-z]+)", lambda command: _COMMANDS.get(command[1], command[0]), text)
    for pattern, new in _RULES:
        text = pattern.sub(new, text)
    text = unwrapped(text)
    if _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    while (match := _BARE_ARGUMENT.search(text)) and (end := closing(text, match.end() - 1)) > 0:
        inner, command = text[match.end() : end], match[0].rstrip("( ")
        text = f"{text[: match.start()]}{command}{{{inner}}}{text[end + 1 :]}"
    return _TIGHT.sub("", text)

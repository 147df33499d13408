"""Units of measurement: which are equal, and which are multiples of each other."""

import re
from fractions import Fraction
from functools import lru_cache

Unit = tuple[tuple[tuple[str, int], ...], Fraction]
"""Powers of base units and factor: `((("m", 1), ("s", -1)), 1/100)` for cm/s."""

_SI = """m meter; g gram; s sec second; L l liter; J joule; N newton; W watt; eV electronvolt;
K kelvin; mol mole; Hz hertz; Pa pascal; V volt; A amp ampere; Ω ohm; T tesla; cal calorie"""
"""Symbol and names of units that take prefixes."""
_PREFIXES = {"p pico": -12, "n nano": -9, "μ micro": -6, "m milli": -3, "c centi": -2, "d deci": -1,
             "k kilo": 3, "M mega": 6, "G giga": 9, "T tera": 12}  # fmt: skip
_OTHERS = """
m: Å angstrom 1/10000000000
Pa: atm atmosphere 101325; bar 100000
ft: in inch inches 1/12; ft foot feet 1; yd yard 3; mi mile 5280
lb: oz ounce 1/16; lb lbs pound GBP 1
s: min minute 60; h hr hour 3600; day 86400; week 604800
year: month 1/12; yr year 1
gallon: gal gallon 1; qt quart 1/4; pt pint 1/8
dollar: cent cents ¢ 1/100; dollar USD 1
euro: euro EUR 1
yen: yen 1
rupee: rupee Rs INR 1
degree: degree deg ° 1
radian: rad radian 1
celsius: °C 1
fahrenheit: °F 1
"""
_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_FACTOR = re.compile(r"(°[CF]|[^\W\d_]+|[°¢])(?:\^?(-?\d))?")


def _read_table() -> dict[str, Unit]:
    named: list[tuple[str, str, Fraction]] = []
    for line in _OTHERS.strip().splitlines():
        base, _, units = line.partition(": ")
        for *names, value in map(str.split, units.split("; ")):
            named += [(name, base, Fraction(value)) for name in names]
    for symbol, *names in map(str.split, _SI.split(";")):
        for name in (symbol, *names):
            named.append((name, symbol, Fraction(1)))
            for prefix, power in _PREFIXES.items():
                start = prefix.split()[len(name) > 3]
                named.append((start + name, symbol, Fraction(10) ** power))
    found: dict[str, Unit] = {}
    for name, base, factor in named:
        unit: Unit = (((base, 1),), factor)
        if base == "L":
            unit = (("m", 3),), factor / 1000
        british = name.replace("ter", "tre")
        forms = [name, name + "s", british, british + "s"] if len(name) > 2 else [name]
        for form in forms:
            found.setdefault(form, unit)
    return found


_UNITS = _read_table()


@lru_cache(maxsize=1024)
def read_unit(text: str) -> Unit | None:
    r"""Read `cm`, `square inches`, `km/h`, `m s^{-1}` or `\frac{m}{s}`; None if it is not a known
    unit."""
    text = re.sub(r"\\frac(\{.*\})(\{.*\})", r"\1/\2", text).replace("mph", "mile/hour")
    text = re.sub(r"\\mu ?", "μ", text.replace(r"\Omega", "Ω"))
    text = re.sub(r"\\(?:text|cdot|times)|[{}\\*·]", " ", text)
    text = re.sub(r"\^ ?circ ?|° ?(?=[CF]\b)", "°", text.replace("µ", "μ").strip(" ."))
    text = re.sub(r"\s*\^\s*", "^", text)
    powers: dict[str, int] = {}
    factor = Fraction(1)
    for place, part in enumerate(re.split(r"/|\bper\b", text)):
        power = 1
        words = _FACTOR.findall(part)
        if not words or "".join(map("".join, words)) != re.sub(r"[\s.^]", "", part):
            return None
        for word, exponent in words:
            if word in _WORDS:
                power = _WORDS[word]
                continue
            unit = _UNITS.get(word) or (_UNITS.get(word.lower()) if len(word) > 2 else None)
            if unit is None:
                return None
            power = int(exponent or power) * (-1 if place else 1)
            for base, times in unit[0]:
                powers[base] = powers.get(base, 0) + times * power
            factor *= unit[1] ** power
            power = 1
    return tuple(sorted(powers.items())), factor

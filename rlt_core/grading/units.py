"""Units of measurement: which are equal, and which are multiples of each other."""

import re
from fractions import Fraction
from functools import lru_cache

Unit = tuple[str, Fraction]
"""Base unit and factor: `("m", 1/100)` for a centimetre."""

_TABLE = """
m: mm millimeter 1/1000; cm centimeter 1/100; m meter 1; km kilometer 1000
ft: in inch inches 1/12; ft foot feet 1; yd yard 3; mi mile 5280
g: mg milligram 1/1000; g gram 1; kg kilogram 1000
lb: oz ounce 1/16; lb lbs pound 1
s: s sec second 1; min minute 60; h hr hour 3600; day 86400; week 604800
year: month 1/12; yr year 1
L: mL ml milliliter 1/1000; L liter 1
gallon: gal gallon 1
dollar: cent cents ¢ 1/100; dollar USD 1
euro: euro EUR 1
pounds: pounds GBP 1
yen: yen 1
rupee: rupee 1
degree: degree deg ° 1
radian: rad radian 1
celsius: °C 1
fahrenheit: °F 1
joule: J joule 1; kJ 1000
newton: N newton 1
watt: W watt 1
eV: eV 1
kelvin: K kelvin 1
mol: mol mole 1
hertz: Hz 1
"""
_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


def _read_table() -> dict[str, Unit]:
    found: dict[str, Unit] = {}
    for line in _TABLE.strip().splitlines():
        base, _, units = line.partition(": ")
        for unit in units.split("; "):
            *names, factor = unit.split()
            for name in names:
                british = name.replace("ter", "tre")
                forms = [name, name + "s", british, british + "s"] if len(name) > 2 else [name]
                found |= {each: (base, Fraction(factor)) for each in forms if each not in found}
    return found


_UNITS = _read_table()


@lru_cache(maxsize=1024)
def read_unit(text: str) -> Unit | None:
    """Read `cm`, `square inches`, `km/h` or `m^2`; None if it is not a known unit."""
    text = re.sub(r"\\text|[{}\\]", " ", text).replace("^circ", "°").replace("^ circ", "°")
    top, *bottom = re.split(r"/|\bper\b", text.replace("mph", "mile/hour").strip(" ."))
    over = [_power(part) for part in bottom]
    unit = _power(top)
    if unit is None or None in over:
        return None
    for part in over:
        assert part is not None
        unit = f"{unit[0]}/{part[0]}", unit[1] / part[1]
    return unit


def _power(text: str) -> Unit | None:
    words = text.replace(".", " ").replace("° C", "°C").replace("° F", "°F").split()
    power = 1
    if len(words) == 2 and words[0].lower() in _WORDS:
        power, words = _WORDS[words[0].lower()], words[1:]
    match = re.fullmatch(r"(\S+?) ?\^? ?([23])?", " ".join(words))
    if match is None:
        return None
    unit = _UNITS.get(match[1]) or (_UNITS.get(match[1].lower()) if len(match[1]) > 2 else None)
    power = int(match[2] or power)
    return None if unit is None else (f"{unit[0]}^{power}" if power > 1 else unit[0],
                                      unit[1] ** power)  # fmt: skip

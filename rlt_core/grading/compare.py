"""Compare typed answers. math-verify is slow to import and can hang: call this in the worker."""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from random import Random
from typing import Any

from rlt_core.grading.answers import as_region
from rlt_core.grading.units import read_unit
from rlt_core.grading.values import THOUSANDS, Answer, scalar, words

_NEVER_S = 10**6
"""math-verify's own timeouts turn a hang into `wrong`; they are so long that the worker is killed
first, and the item is reported as grader_failed."""
_POINTS, _TRIES = 3, 12
_DEGREE, _RADIAN = read_unit("degree"), read_unit("radian")
_DIGITS, _EQUAL_DIGITS = 40, 25
_DIFFERENTIAL = re.compile(r"(?<![\\A-Za-z])([a-z]?)d(?=[a-z]{1,2}(?![A-Za-z]))")
"""A product `dc`, which math-verify would read as a differential."""


def same(a: Answer, b: Answer) -> bool:
    """Return whether two answers are equal. Symmetric."""
    if a.text == b.text:
        return True
    if "assignment" in (a.kind, b.kind):
        return _same_assignment(a, b)
    for one, other in ((a, b), (b, a)):
        if one.kind == "base" and other.kind in ("scalar", "words"):
            return other.text.replace(" ", "").upper().lstrip("0") == one.parts[0]
    if "words" in (a.kind, b.kind):
        return (a.kind == b.kind and a.parts == b.parts) or words(a.text).parts == words(
            b.text
        ).parts
    if a.kind == b.kind:
        return _same_kind(a, b)
    for one, other in ((a, b), (b, a)):
        if other.kind in ("set", "list") and len(other.parts) == 1:
            return same(one, other.parts[0])
        if one.kind == "region" and (pieces := as_region(other)) is not None:
            return _paired(one.parts, pieces, _same_piece)
        if one.kind == "list" and other.kind == "tuple":
            return _in_order(_values(one), _values(other))
        if one.kind == "list" and THOUSANDS.fullmatch(other.text):
            return _paired(one.parts, [*map(scalar, other.text.split(","))], same)
        if one.kind == "matrix" and (vector := _as_vector(other)):
            mark, *row_lengths = one.parts[0]
            if not mark and (len(row_lengths) == 1 or set(row_lengths) == {1}):
                return _in_order(one.parts[1:], vector)
        if one.kind == "matrix" and other.kind == "scalar" and "matrix" in other.text:
            return _equal(one.text, Fraction(1), other.text, Fraction(1))
        if one.kind == "list" and other.kind == "set":
            return _paired(one.parts, other.parts, same)
        if one.kind == "time" and other.kind == "scalar" and one.parts[1] > 9:
            ratio = scalar(rf"\frac{{{one.parts[0]}}}{{{one.parts[1]}}}")
            return one.parts[2:] == (0, "") and _same_kind(ratio, other)
    return False


def _same_kind(a: Answer, b: Answer) -> bool:
    if a.kind == "scalar":
        return _same_scalars(a, b)
    if a.kind == "set":
        return all(
            any(same(x, y) for y in other.parts)
            for one, other in ((a, b), (b, a))
            for x in one.parts
        )
    if a.kind in ("list", "region"):
        return _paired(a.parts, b.parts, same if a.kind == "list" else _same_piece)
    if a.kind == "tuple":
        return _in_order(a.parts, b.parts)
    if a.kind == "matrix":
        return a.parts[0] == b.parts[0] and _in_order(a.parts[1:], b.parts[1:])
    if a.kind == "time":
        return _same_times(a.parts, b.parts)
    if a.kind == "relation":
        return a.parts[0] == b.parts[0] and _proportional(a, b)
    return a.parts == b.parts


def _values(answer: Answer) -> tuple[Answer, ...]:
    parts = answer.parts
    if all(each.kind == "assignment" and each.parts[0] in ("x", "y", "z") for each in parts):
        parts = tuple(sorted(parts, key=lambda each: str(each.parts[0])))
    return tuple(each.parts[1] if each.kind == "assignment" else each for each in parts)


def _as_vector(answer: Answer) -> tuple[Answer, ...] | None:
    """Return the numbers of `(1,2)` or `[1,2]`."""
    if answer.kind == "region" and [piece[1::2] for piece in answer.parts] == [(True, True)]:
        return tuple(answer.parts[0][::2])
    return _values(answer) if answer.kind == "tuple" else None


def _in_order(a: tuple[Answer, ...], b: tuple[Answer, ...]) -> bool:
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def _paired(a: Sequence[Any], b: Sequence[Any], equal: Callable[[Any, Any], bool]) -> bool:
    """Return whether `a` and `b` have equal elements, in any order."""
    if len(a) != len(b):
        return False
    left = list(b)
    for each in a:
        found = next((other for other in left if equal(each, other)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_piece(a: Any, b: Any) -> bool:
    """Return whether two intervals (low, closed, high, closed) are equal."""
    return a[1] == b[1] and a[3] == b[3] and same(a[0], b[0]) and same(a[2], b[2])


def _same_assignment(a: Answer, b: Answer) -> bool:
    """Compare values only if one answer has no name, else both sides."""
    if a.kind == b.kind:
        if a.parts[0] == b.parts[0]:
            return same(a.parts[1], b.parts[1])
        return _proportional(_as_relation(a), _as_relation(b))
    one, other = (a, b) if a.kind == "assignment" else (b, a)
    if other.kind == "relation":
        return other.parts[0] == "=" and _proportional(_as_relation(one), other)
    return same(one.parts[1], other)


def _as_relation(assignment: Answer) -> Answer:
    name, value = assignment.parts
    return Answer("relation", assignment.text, ("=", scalar(name), value))


def _same_times(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Compare times; a missing `am` or `pm` is not a difference."""
    both = bool(a[3] and b[3])
    return a[1:3] == b[1:3] and bool(_hours(a, both) & _hours(b, both))


def _hours(time: tuple[Any, ...], exact: bool) -> set[int]:
    """Return the hours of the day that a time may mean; as it is written too unless `exact`."""
    hour = time[0] % 12 + (12 if time[3] == "p" else 0)
    return {hour} if exact else {time[0], hour} if time[3] else {time[0]}


def _same_scalars(a: Answer, b: Answer) -> bool:
    (x, x_percent, x_unit), (y, y_percent, y_unit) = a.parts, b.parts
    for one, unit, other, of_other in ((x, x_unit, y, y_unit), (y, y_unit, x, x_unit)):
        if unit == _DEGREE and of_other in (None, _RADIAN) and r"\pi" in str(other):
            return _equal(rf"\frac{{\pi}}{{180}}({one})", Fraction(1), other, Fraction(1))
    if x_unit and y_unit:
        if x_unit[0] != y_unit[0]:
            return False
        factors = [(x_unit[1], y_unit[1])]
    else:
        one, share = Fraction(1), Fraction(1, 100)
        factors = [(one, one)]
        if x_percent != y_percent:  # 50% may be written as 50, and as 0.5
            factors.append((share, one) if x_percent else (one, share))
            if isinstance(x, Fraction) and abs(x) < 1:  # 0.5% may not be written as 0.5
                del factors[0]
    return any(_equal(x, p, y, q) for p, q in factors)


def _equal(x: Fraction | str, p: Fraction, y: Fraction | str, q: Fraction) -> bool:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x * p == y * q
    from sympy import Rational

    left, right = expression(x), expression(y)
    if left is None or right is None:
        return p == q and isinstance(x, str) and isinstance(y, str) and x.split() == y.split()
    try:
        return equal_expressions(left * Rational(p), right * Rational(q))
    except TypeError:  # a set or a relation has no multiples
        return p == q and equal_expressions(left, right)


@lru_cache(maxsize=512)
def expression(value: Fraction | str) -> Any:
    """Return a number or LaTeX as SymPy expression with exact decimals; None if math-verify cannot
    read it."""
    from math_verify import LatexExtractionConfig, parse
    from sympy import Basic, Float, I, Rational

    if isinstance(value, Fraction):
        return Rational(value.numerator, value.denominator)
    latex = value.replace(r"^\circ", r"\cdot\frac{\pi}{180}").replace("%", r"\%")
    latex = _DIFFERENTIAL.sub(r"\1{d}", latex)
    parsed = parse(
        rf"\boxed{{{latex}}}",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=_NEVER_S,
    )
    if not parsed:
        return None
    found = parsed[0]
    if isinstance(found, Basic):
        found = found.subs({each: I for each in found.free_symbols if each.name == "i"})
        return found.xreplace({each: Rational(str(each)) for each in found.atoms(Float)})
    return found


def equal_expressions(a: Any, b: Any) -> bool:
    """Compare values at a few points to 25 digits, relative to their size, since math-verify treats
    numbers below 1e-6 as equal; let math-verify decide if there are no values. Points outside the
    domain of real functions are skipped."""
    from math_verify import verify
    from sympy import I

    if a == b:
        return True
    agreed = 0
    for point in range(_TRIES):
        x, y = _value(a, point), _value(b, point)
        if x is None or y is None:
            break
        variable = bool(a.free_symbols | b.free_symbols)
        if variable and not (a.has(I) or b.has(I) or (x.is_real and y.is_real)):
            continue
        if not _close(x, y):
            return False
        agreed += 1
        if agreed == _POINTS or not variable:
            return True
    return agreed > 0 or bool(verify([a], [b], timeout_seconds=_NEVER_S))


def _close(x: Any, y: Any) -> bool:
    """Return whether two values are equal, relative to their size."""
    from sympy import Rational

    if x.is_infinite or y.is_infinite or (x.is_Rational and y.is_Rational):
        return bool(x == y)
    return bool(abs(x - y) <= max(abs(x), abs(y)) * Rational(10) ** -_EQUAL_DIGITS)


def _value(expression: Any, point: int) -> Any:
    """Evaluate an expression at a point with a value per symbol; None if it has no value."""
    from sympy import Basic, Float, Rational, nan, zoo

    if not isinstance(expression, Basic):
        return None
    values = {
        symbol: Rational(Random(f"{symbol.name} {point}").randint(-9999, 9999), 1009)
        for symbol in expression.free_symbols
    }
    try:
        found = expression.subs(values)
        if not found.is_Rational:
            found = found.evalf(_DIGITS)
        # evalf leaves a sum that is zero as a Float without a significant digit
        found = found.xreplace({each: 0 for each in found.atoms(Float) if each._prec == 1})
    except Exception:  # SymPy may raise anything; math-verify then decides
        return None
    number = getattr(found, "is_number", False) and not found.has(zoo, nan)
    return found if number and (found.is_infinite or found.is_complex) else None


def _proportional(a: Answer, b: Answer) -> bool:
    """Return whether two equations or inequalities (`<`, `<=`) are equivalent: the differences of
    their sides have a constant ratio, positive for an inequality."""
    differences = []
    for relation in (a, b):
        if any(side.kind != "scalar" for side in relation.parts[1:]):
            return False
        left, right = (expression(side.parts[0]) for side in relation.parts[1:])
        if left is None or right is None:
            return False
        differences.append(left - right)
    x, y = differences
    ratio = None
    for point in range(_POINTS):
        p, q = _value(x, point), _value(y, point)
        if p is None or q is None or p == 0 or q == 0:
            return False
        if ratio is not None and not _close(p / q, ratio):
            return False
        ratio = p / q
    return ratio is not None and (a.parts[0] == "=" or bool(ratio > 0))

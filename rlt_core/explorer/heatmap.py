"""Tokens as HTML, coloured by one channel at a time, without a script or inline styles.

    channel_input("student")  in a page where the reader chooses, or
    <div class="by-student">  around `heatmap(tokens)`, where the channel is fixed
    <style>{{ CSS }}</style>  and `legend(channel)` once per channel

The scales are the same for all traces of all runs, so that colours can be compared. Orange and blue
are told apart by colour-blind readers, and the steps by lightness; the tokens that set a minimum or
maximum are framed. A token's values appear while it is pointed at or has the keyboard's focus.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from rlt_core.explain import Token
from rlt_core.printable import printable


@dataclass(frozen=True)
class TokenColour:
    """A value of a token, and the scale of its colours."""

    title: str
    about: str
    value: Callable[[Token], float | None]
    """Positive values are orange, negative ones blue."""
    steps: Sequence[float]
    """Least absolute values of the colours 1 to 7."""
    names: Sequence[str]
    """What the legend writes at each step."""
    two_sided: bool = False


_PROBABILITIES = (0.9, 0.5, 0.2, 0.05, 0.01, 0.001, 0.0001)
_UNLIKELY = tuple(-math.log(p) for p in _PROBABILITIES)
_PERCENT = tuple(f"{p:.0%}" if p >= 0.01 else f"{p * 100:g}%" for p in _PROBABILITIES)
_NATS = (0.1, 0.3, 0.7, 1.5, 3.0, 5.0, 8.0)
_SHARES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

CHANNELS = {
    "student": TokenColour(
        "student", "the student gives the token a probability below this",
        lambda token: -token.student, _UNLIKELY, _PERCENT,
    ),
    "teacher": TokenColour(
        "teacher", "the teacher gives the token a probability below this",
        lambda token: None if token.teacher is None else -token.teacher, _UNLIKELY, _PERCENT,
    ),
    "difference": TokenColour(
        "teacher - student",
        "teacher's minus student's log-prob: orange surprises the student and costs reward",
        lambda token: None if token.teacher is None else token.teacher - token.student,
        _NATS, tuple(map(str, _NATS)), two_sided=True,
    ),
    "reward": TokenColour(
        "share of the reward", "what the token adds to the reward: orange lowers it",
        lambda token: None if token.share is None else -token.share, _SHARES,
        tuple(f"-{s:g}" for s in _SHARES), two_sided=True,
    ),
}  # fmt: skip
"""By the name that URLs use; its first letter begins the classes."""

_ORANGE = (
    ("#fff0df", "#2b2017"), ("#ffdfba", "#42301d"), ("#fdc68d", "#5e3e1c"), ("#f9a55c", "#7d4e1a"),
    ("#ec8030", "#9c5c17"), ("#c25712", "#df8930"), ("#8f3a06", "#ffc078"),
)  # fmt: skip
_BLUE = (
    ("#e9f2fb", "#16232f"), ("#cfe3f5", "#1b3347"), ("#a9cdec", "#204560"), ("#7ab3e0", "#26597f"),
    ("#4c97d2", "#2f6f9f"), ("#2069ac", "#5ea5de"), ("#0d4580", "#a3d2fb"),
)  # fmt: skip
"""Background of each step, light and dark; the last two turn the colour of the text around."""


def heatmap(tokens: Iterable[Token]) -> Markup:
    """Return the tokens as one block of HTML for `CSS`; texts are inert."""
    pieces = []
    for place, token in enumerate(tokens):
        levels = {name: _level(channel, token) for name, channel in CHANNELS.items()}
        classes = [f"{name[0]}{level}" for name, level in levels.items() if level]
        if token.sets:
            classes.append("sets")
        text = printable(token.text).replace("\n", "↵\n") or "·"
        reached = 0 if token.sets or not place else -1  # by Tab; the others by a tap or arrow keys
        pieces.append(
            Markup('<span class="{}" tabindex="{}" data-v="{}">{}</span>').format(
                " ".join(["t", *classes]), reached, values(token), text
            )
        )
    return Markup('<div class="heat">{}</div>').format(Markup("").join(pieces))


def values(token: Token) -> str:
    """Return all values of a token, a line each."""
    lines = [f"“{printable(token.text)}” · token {token.position + 1}"]
    for name, value in (("student", token.student), ("teacher", token.teacher)):
        if value is not None:
            lines.append(f"{name} {value:.3f} ({percent(value)})")
    if token.teacher is not None and token.kl is not None:
        difference = token.teacher - token.student
        lines.append(f"teacher - student {difference:+.3f}")
        if not math.isclose(token.kl, difference, abs_tol=1e-6):
            lines.append(f"KL at the token {token.kl:.3f}")
    if token.share is not None:
        lines.append(f"adds {token.share:+.4f} to the reward")
    if token.sets:
        lines.append(f"sets the {token.sets}imum")
    return "\n".join(lines)


def percent(logprob: float) -> str:
    """Return a probability in percent, a very small one as a number."""
    p = math.exp(logprob)
    return f"{p:.0%}" if p >= 0.095 else f"{p:.1%}" if p >= 0.001 else f"{p:.1e}"


def _level(channel: TokenColour, token: Token) -> int:
    """Return the step of the scale, -7 to 7; 0 is no colour."""
    value = channel.value(token)
    if value is None:
        return 0
    step = bisect_right(channel.steps, abs(value))
    return -step if value < 0 else step


def legend(name: str) -> Markup:
    """Return the scale of a channel; it is shown while the channel is chosen."""
    channel, letter = CHANNELS[name], name[0]
    swatches = [(f"{letter}{step}", label) for step, label in enumerate(channel.names, 1)]
    for step, label in enumerate(channel.names if channel.two_sided else (), 1):
        other = label.removeprefix("-") if label[0] == "-" else f"-{label}"
        swatches.insert(0, (f"{letter}-{step}", other))
    scale = Markup("").join(
        Markup('<i class="t {}">{}</i>').format(style, label) for style, label in swatches
    )
    return Markup(
        '<p class="legend of-{}"><span class="scale">{}</span> {}; framed: sets a minimum or '
        "maximum</p>"
    ).format(name, scale, channel.about)


def channel_input(name: str, checked: bool) -> Markup:
    """Return a radio button that chooses a channel for its whole page, without a script."""
    return Markup(
        '<label><input type="radio" name="channel" id="by-{0}" value="{0}"{1}>{2}</label>'
    ).format(name, Markup(" checked") if checked else "", CHANNELS[name].title)


def _css() -> str:
    rules = [Path(__file__).with_name("heatmap.css").read_text(encoding="utf-8").strip()]
    for name in CHANNELS:
        chosen = f":is(.by-{name}, :root:has(#by-{name}:checked))"
        rules.append(f"{chosen} .legend.of-{name} {{ display: block; }}")
        for sign, colours in (("", _ORANGE), ("-", _BLUE)):
            for step, (light, dark) in enumerate(colours, 1):
                text = " color: light-dark(#fff, #111);" if step > 5 else ""
                rules.append(
                    f"{chosen} .{name[0]}{sign.replace('-', chr(92) + '-')}{step} "
                    f"{{ background: light-dark({light}, {dark});{text} }}"
                )
    return "\n".join(rules)


CSS = _css()
"""Styles of `heatmap` and `legend`; the page declares `color-scheme: light dark`."""

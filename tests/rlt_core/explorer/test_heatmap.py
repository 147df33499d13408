"""Tokens as coloured HTML: one scale for all, texts inert, values without a script."""

import re

import pytest

from rlt_core.explain import Token, explain
from rlt_core.explorer.heatmap import CHANNELS, CSS, channel_input, heatmap, legend
from rlt_core.store import Store
from tests.rlt_core.test_explain import TRACE, scored


def token(text="word", **values):
    return Token(0, text, **{"student": -0.01, "teacher": -0.01, "kl": 0.0, **values})


def classes(found):
    return re.findall(r'class="(t[^"]*)"', heatmap([found]))[0].split()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, []),
        ({"student": -2.0, "teacher": -2.0}, ["s3", "t3"]),
        ({"student": -2.0, "teacher": -0.01, "kl": 1.99}, ["s3", "d4"]),
        ({"student": -0.01, "teacher": -50.0, "kl": -49.99}, ["t7", "d-7"]),
        ({"share": 0.02}, ["r-3"]),
        ({"share": -2.0, "sets": "min"}, ["r7", "sets"]),
        ({"student": -2.0, "teacher": None, "kl": None}, ["s3"]),
    ],
)
def test_a_colour_depends_on_the_value_alone(given, expected):
    assert classes(token(**given))[1:] == expected


def test_every_colour_that_a_token_can_have_is_in_the_style():
    for name in CHANNELS:
        for style in re.findall(r'class="t (\S+?)"', legend(name)):
            assert f".by-{name}, " in CSS and f".{style.replace('-', chr(92) + '-')} {{" in CSS
    assert "url(" not in CSS and "@import" not in CSS


def test_texts_are_inert_and_line_breaks_stay():
    page = heatmap([token('<script>alert("x")</script>'), token("\n"), token("\x1b[2J"), token("")])
    assert "<script" not in page and "style=" not in page and " on" not in page.lower()
    assert "↵\n</span>" in page and "␛[2J" in page and ">·</span>" in page


def test_one_channel_is_chosen_without_a_script():
    inputs = [channel_input(name, name == "reward") for name in CHANNELS]
    assert [" checked" in one for one in inputs] == [name == "reward" for name in CHANNELS]
    assert all(f'id="by-{name}"' in one for name, one in zip(CHANNELS, inputs, strict=True))
    assert len({name[0] for name in CHANNELS}) == len(CHANNELS)


def test_the_tokens_of_a_trace(tmp_path):
    store = Store(str(tmp_path))
    scored(store)
    found = explain(store, TRACE)
    page = heatmap(found.explanation)
    assert page.count('<span class="t') == len(found.explanation)
    assert page.count("sets the maximum") == 1 and "adds " in page
    assert heatmap(found.solution).count("sets the minimum") == 1
    assert heatmap([]) == '<div class="heat"></div>'

"""Markdown texts: escaping, code, points, lists of names and aligned tables."""

import pytest

from yolor_ray.report.markdown import code, escape, join_with_and, percent_points, table


@pytest.mark.parametrize(
    ("text", "line"),
    [("a|b\nc", "a\\|b c"), ("×FA*", "×FA\\*"), ("__init__ of my_name", "\\_\\_init\\_\\_ of my_name"), ("<x> [y](z)", "\\<x> \\[y\\](z)")],
)
def test_escaped_text_has_no_markup(text, line):
    assert escape(text) == line


def test_long_text_is_cut():
    assert len(escape("x" * 5000)) == 300


def test_code_keeps_bars_and_backticks():
    assert (code("a|b"), code("a`b"), code("x\ny")) == ("`a\\|b`", "`` a`b ``", "`x y`")


def test_points_have_a_typographic_minus_and_no_negative_zero():
    assert (percent_points(-0.02, 1), percent_points(-0.000001, 1, "+"), percent_points(float("nan"), 1)) == ("−2.0", "+0.0", "–")


def test_names_are_joined_with_and():
    assert [join_with_and(items) for items in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_tables_are_aligned_as_plain_text():
    lines = table(("name", "n"), [["×FA\\*", "1"], ["a", "−12.5"]]).splitlines()
    assert lines == ["| name  |     n |", "| ----- | ----: |", "| ×FA\\* |     1 |", "| a     | −12.5 |"]

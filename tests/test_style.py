"""How densely the project is written stays within limits; the counter counts right."""

import pytest
import style
from places import ROOT

SOURCE = '''\
"""A docstring
of two lines."""

# A comment.
import os


def f(x):  # no line of its own
    """Gives x."""
    # Another,
    # of two lines.
    if x:
        "no docstring"
    return x
'''


def count(tmp_path, source):
    (tmp_path / "made_up.py").write_text(source)
    return style.count([tmp_path / "made_up.py"])


@pytest.fixture(scope="module")
def project():
    return style.count(style.project_files(ROOT))


def test_a_line_holds_few_tokens(project):
    assert project.tokens_per_line <= 8.5


def test_lines_end_at_100_columns(project):
    assert project.over_100_columns == []


def test_comments_stand_on_lines_of_their_own(project):
    assert project.comment_share >= 0.03


def test_arguments_are_written_out(project):
    assert len(project.splatted_dicts) <= 5, project.splatted_dicts


def test_functions_have_at_most_60_lines(project):
    assert project.over_60_lines == []


def test_docstrings_comments_and_layout_are_no_tokens(tmp_path):
    counts = count(tmp_path, SOURCE)
    # import os; def f ( x ) :; if x :; "no docstring"; return x
    assert counts.tokens == 2 + 6 + 3 + 1 + 2
    assert counts.code_lines == 5
    assert counts.tokens_per_line == 14 / 5
    assert (counts.comment_lines, counts.lines) == (3, 11)
    assert counts.comment_share == 3 / 11


def test_a_statement_over_several_lines_has_a_code_line_for_each(tmp_path):
    counts = count(tmp_path, "x = (\n    1,\n\n    2,\n)\n")
    assert (counts.tokens, counts.code_lines) == (3 + 2 + 2 + 1, 4)


def test_a_text_over_several_lines_is_one_token_of_its_first_line(tmp_path):
    counts = count(tmp_path, 'x = """a\nb\nc"""\n')
    assert (counts.tokens, counts.code_lines) == (3, 1)


@pytest.mark.parametrize(("columns", "found"), [(100, 0), (101, 1)])
def test_the_line_that_is_too_long(tmp_path, columns, found):
    counts = count(tmp_path, "\n# " + "x" * (columns - 2) + "\n")
    assert counts.over_100_columns == [f"{tmp_path}/made_up.py:2"][:found]


@pytest.mark.parametrize(("lines", "found"), [(60, 0), (61, 1)])
def test_the_function_that_is_too_long(tmp_path, lines, found):
    body = "    pass\n" * (lines - 1)
    counts = count(tmp_path, f"\n\nasync def f():\n{body}")
    assert counts.over_60_lines == [f"{tmp_path}/made_up.py:3"][:found]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("def f():\n    own = {}\n    g(**own)\n", [3]),
        ("def f(given):\n    g(**given)\n", []),
        ("def f():\n    own = {}\n    g(own, *own)\n    return {**own}\n", []),
        ("def f():\n    for own in x:\n        g(a=1, **own)\n", [3]),
    ],
    ids=["its own dict", "an argument", "no keyword", "a loop's"],
)
def test_the_dict_that_is_splatted(tmp_path, source, lines):
    places = [f"{tmp_path}/made_up.py:{line}" for line in lines]
    assert count(tmp_path, source).splatted_dicts == places

"""reptk.report.templating: what templates print is escaped, and a misspelled variable is an error."""

import json

import jinja2
import pytest
from markupsafe import Markup

from reptk.report.templating import environment, for_json


def rendered(source: str, **variables: object) -> str:
    return environment().from_string(source).render(variables)


def test_text_is_escaped_in_content_and_attributes() -> None:
    page = rendered('<p title="{{ text }}">{{ text }}</p>', text="<b>\"&'")
    assert page == '<p title="&lt;b&gt;&#34;&amp;&#39;">&lt;b&gt;&#34;&amp;&#39;</p>'


def test_markup_is_not_escaped_twice() -> None:
    assert rendered("{{ text }}", text=Markup("<b>&amp;</b>")) == "<b>&amp;</b>"
    assert rendered("{% macro bold(text) %}<b>{{ text }}</b>{% endmacro %}{{ bold(text) }}", text="&") == "<b>&amp;</b>"


def test_what_cannot_be_shown_is_replaced() -> None:
    assert rendered("{{ text }}", text="two\nlines\x00 \u202eback \ud800") == "two\u240alines\u2400 \ufffdback ?"


def test_line_breaks_survive_where_they_are_meant() -> None:
    assert rendered("{{ text | lines }}", text="<a>\n\tb") == "&lt;a&gt;\n\u2409b"


def test_a_misspelled_variable_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="tetx"):
        rendered("{{ tetx }}", text="")


def test_json_cannot_end_a_script_or_an_attribute() -> None:
    value = {"</script>": float("nan"), "x": ["<!--", "\u2028", 1.5, "it's"]}
    script = rendered('<script id="d">{{ value | tojson }}</script>', value=for_json(value))
    content = script.removeprefix('<script id="d">').removesuffix("</script>")
    assert "</script>" not in content
    assert "<!--" not in content
    assert "'" not in content
    assert json.loads(content) == {"</script>": None, "x": ["<!--", "\u2028", 1.5, "it's"]}

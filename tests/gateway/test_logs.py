"""Logs: one valid line an event, whatever is in it, and no secrets."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.process import logs
from tests.conftest import LogLines

pytestmark = pytest.mark.usefixtures("logs_as_before")


def only(lines: LogLines) -> dict[str, Any]:
    (line,) = lines()
    return line


def test_an_event_is_one_json_line_with_time_level_service_and_module(log_lines: LogLines) -> None:
    logs.get_logger("gateway.somewhere").info("it happened", token_id=7, cost_nanos=10**18, ok=True, nothing=None)
    line = only(log_lines)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "it happened",
        "level": "info",
        "service": "test",
        "module": "gateway.somewhere",
        "token_id": 7,
        "cost_nanos": 10**18,
        "ok": True,
        "nothing": None,
    }


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize(
    "value",
    [
        "two\nlines\r\n",
        "\x00\x1b[31m\u2028\u0085",
        "a \ud800 surrogate",
        b"\xff bytes",
        float("nan"),
        float("-inf"),
        10**5000,
        {1: {2: {3: {4: {5: {6: {7: {8: "deep"}}}}}}}},
        {"\n": object(), None: 1, ("a",): 2},
        {1, 2},
        [Unprintable()],
        Unprintable(),
        ValueError('"quoted"'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_in_an_event_it_stays_one_valid_line(log_lines: LogLines, value: Any) -> None:
    logs.get_logger("x").warning("odd", value=value)
    assert only(log_lines)["event"] == "odd"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)


@given(event=st.text(), values=st.dictionaries(st.from_regex(r"v_[a-z]{1,5}", fullmatch=True), anything, max_size=4))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_event_is_read_back(event: str, values: dict[str, Any]) -> None:
    stream = io.StringIO()
    logs.configure("info", "json", "test", stream=stream)
    logs.get_logger("x").info(event, **values)
    text = stream.getvalue()
    assert text.isascii()
    assert text.count("\n") == 1
    assert json.loads(text)["level"] == "info"


def test_long_values_are_cut(log_lines: LogLines) -> None:
    logs.get_logger("x").info("long", body="x" * 100_000, inside={"list": ["y" * 3_000]})
    line = only(log_lines)
    assert line["body"] == "x" * 2_000 + "… (100000 characters)"
    assert line["inside"]["list"][0].startswith("y" * 2_000 + "…")


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "password",
        "new_password",
        "api_key",
        "API_KEY",
        "authorization",
        "Authorization",
        "cookie",
        "session_token",
        "secret",
    ],
)
def test_what_is_called_like_a_secret_is_hidden(log_lines: LogLines, name: str) -> None:
    logs.get_logger("x").info("called", **{name: "hunter2"}, headers={name: "hunter2", "accept": "*/*"})
    line = only(log_lines)
    assert "hunter2" not in json.dumps(line)
    assert line["headers"]["accept"] == "*/*"


def test_counts_of_tokens_are_no_secrets(log_lines: LogLines) -> None:
    logs.get_logger("x").info("used", input_tokens=5, token_id=3, max_output_tokens=9)
    line = only(log_lines)
    assert (line["input_tokens"], line["token_id"], line["max_output_tokens"]) == (5, 3, 9)


@pytest.mark.parametrize(
    "text",
    ["sk-gz-" + "aB3" * 15 + "x", "sk-proj-" + "a1" * 20, "Bearer " + "abc" * 5, "AIza" + "x" * 35, "gsk_" + "b2" * 20],
)
def test_what_looks_like_a_key_is_hidden_wherever_it_stands(log_lines: LogLines, text: str) -> None:
    logger = logs.get_logger("x")
    logger.info(f"got {text}", detail=f"<{text}>", headers=[text])
    logger.error("failed", exc_info=_raised(ValueError(text)))
    written = json.dumps(log_lines())
    assert text not in written
    assert "[hidden]" in written


def _raised(error: Exception) -> Exception:
    """An error with a stack trace."""
    with contextlib.suppress(type(error)):
        raise error
    return error


def test_an_exception_is_logged_whole_in_one_line(log_lines: LogLines) -> None:
    logs.get_logger("x").error("failed", exc_info=_raised(ValueError("the cause")))
    line = only(log_lines)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: the cause")


def test_an_exception_does_not_show_the_values_of_variables() -> None:
    for kind in ("json", "console"):
        stream = io.StringIO()
        logs.configure("info", kind, "test", stream=stream)  # type: ignore[arg-type]
        _fail_with_a_secret_in_a_variable()
        assert "KeyError" in stream.getvalue()
        assert "hunter2" not in stream.getvalue()


def _fail_with_a_secret_in_a_variable() -> None:
    held = "".join(["hunter", "2"])
    try:
        {}[len(held)]
    except KeyError:
        logs.get_logger("x").exception("failed")


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    logs.configure("warning", "json", "test", stream=stream)
    logs.get_logger("x").info("no")
    logs.get_logger("x").warning("yes")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["yes"]
    assert not logs.debugging()


def test_libraries_log_into_the_same_lines_and_no_lower_than_warnings(log_lines: LogLines) -> None:
    logging.getLogger("somebody.else").warning("careful: %s", "x\ny")
    logging.getLogger("somebody.else").info("wire: authorization: Bearer abc")
    line = only(log_lines)
    assert (line["event"], line["level"], line["service"]) == ("careful: x\ny", "warning", "test")


def test_bound_facts_stand_in_every_line_until_they_are_taken_out(log_lines: LogLines) -> None:
    logs.bind(request_id="r-1")
    logs.get_logger("x").info("first")
    logs.unbind("request_id")
    logs.get_logger("x").info("second")
    assert [line.get("request_id") for line in log_lines()] == ["r-1", None]


def test_console_lines_are_for_people() -> None:
    stream = io.StringIO()
    logs.configure("info", "console", "test", stream=stream)
    logs.get_logger("x").info("it happened", count=3, text="two\nlines")
    (line,) = stream.getvalue().splitlines()
    assert "it happened" in line
    assert "count=3" in line
    assert "\x1b" not in line


def test_without_a_terminal_lines_are_json() -> None:
    stream = io.StringIO()
    logs.configure("info", None, "test", stream=stream)
    logs.get_logger("x").info("it happened")
    assert json.loads(stream.getvalue())["event"] == "it happened"


@pytest.mark.parametrize("secret", ["gzs_" + "aB3" * 14, "sk-gz-" + "x9" * 23])
def test_a_secret_in_a_path_is_hidden(log_lines: LogLines, secret: str) -> None:
    logs.get_logger("x").info("request", path=f"/admin/sessions/{secret}", model=secret)
    line = only(log_lines)
    assert secret not in str(line)
    assert line["path"] == "/admin/sessions/[hidden]"

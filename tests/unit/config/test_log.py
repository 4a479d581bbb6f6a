"""Log lines: one per event, whatever strangers put into them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest

from ifbusd.log import JsonFormatter, TextFormatter


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("ifbusd.test").makeRecord(
        "ifbusd.test", logging.WARNING, __file__, 1, message, args, None, extra=extra
    )


def test_a_json_line_has_message_and_fields() -> None:
    """Figures are fields, not prose; what is no JSON is shown as Python shows it."""
    line = JsonFormatter().format(record("refused %s", "it", uid=1000, path={1}))
    assert (
        json.loads(line).items()
        >= {
            "level": "warning",
            "logger": "ifbusd.test",
            "message": "refused it",
            "uid": 1000,
            "path": "{1}",
        }.items()
    )


def test_a_text_line_stays_one_line() -> None:
    """A stranger's newline or escape sequence is shown, not obeyed."""
    line = TextFormatter().format(record("swarm %s", "a\nb", named="\x1b[31m"))
    assert line.endswith("warning ifbusd.test: swarm a\\nb  named=\\x1b[31m")


def test_an_exception_comes_with_its_traceback() -> None:
    """Both forms keep the cause."""
    try:
        raise ValueError("because")
    except ValueError:
        failed = record("failed")
        failed.exc_info = sys.exc_info()
    assert "ValueError: because" in json.loads(JsonFormatter().format(failed))["exception"]
    assert "ValueError: because" in TextFormatter().format(failed)


@pytest.mark.slow
def test_all_loggers_end_on_standard_error() -> None:
    """Every component's lines have one form and one place."""
    code = """
import logging
from ifbusd import log
log.set_up("json", "warning")
logging.getLogger("ifbusd.a").warning("one", extra={"uid": 1})
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("ifbusd.c").exception("three")
logging.getLogger("ifbusd.a").info("quiet")
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == ""
    one, three = map(json.loads, done.stderr.splitlines())
    assert one.items() >= {"message": "one", "logger": "ifbusd.a", "uid": 1}.items()
    assert "ZeroDivisionError" in three["exception"]

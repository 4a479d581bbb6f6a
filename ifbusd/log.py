"""The daemon's log: one line per event on standard error, JSON for machines, text for a person at a terminal.

Components use ``logging.getLogger(__name__)`` with figures in ``extra=``. A healthy daemon writes nothing at ``info`` beyond its
start and stop (STYLE 5). The standard library does it, because trio has loaded it already and structlog costs 40 ms of start-up.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ifbusd.config import LogFormat, LogLevel

# What the standard library itself puts into a record; everything else came with `extra=`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(log_format: LogFormat, level: LogLevel) -> None:
    """Send all log records of the process to standard error, from now on and in one format (``auto``: text on a terminal)."""
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


class JsonFormatter(logging.Formatter):
    """``{"at": RFC 3339, "level": ..., "logger": ..., "message": ..., fields of extra, "exception": traceback}``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a value that is no JSON is written as its `repr`."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(_extra(record))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=repr)


class TextFormatter(logging.Formatter):
    """``12:41:07 warning ifbusd.rpc: message  key=value``, and a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, the traceback apart; control characters from strangers are escaped."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        figures = "".join(f"  {key}={_printable(value)}" for key, value in _extra(record).items())
        line = f"{at} {record.levelname.lower()} {record.name}: {_printable(record.getMessage())}{figures}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _printable(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

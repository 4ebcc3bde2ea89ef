"""The log: one line of JSON per entry. The text of conversations is left out unless the settings ask for it."""

import json
import logging
import re
import sys
from datetime import UTC, datetime

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}

_UNSEEN = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Ends of lines and control characters that JSON leaves as they are, and surrogates, which cannot be written."""


class JsonFormatter(logging.Formatter):
    """An entry as one line of JSON: time, level, message, and the fields given by `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. No text can pass for another entry, whatever program reads the log."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        row: dict[str, object] = {"at": at, "level": record.levelname.lower(), "message": record.getMessage()}
        more = {name: value for name, value in vars(record).items() if name not in _OWN}
        row = row | more | row  # `extra` cannot replace time and message
        if record.exc_info and record.exc_info[1] is not None:
            row["error"] = self.formatException(record.exc_info)
        return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(row, ensure_ascii=False, default=str))


def _is_news(record: logging.LogRecord) -> bool:
    """Filters out uvicorn's message about each WebSocket that is refused with a response, which it logs as an error."""
    return "without completing handshake" not in record.getMessage()


def configure() -> None:
    """Write the log of the server and of its libraries to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(_is_news)
    for name, level in (("duologue", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)

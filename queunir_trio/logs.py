"""Structured logs: one line an event, with the request, user and slice it concerns, and never a secret.

`structlog.get_logger()` writes it, `about(user_id=7)` adds to every line of the task from there on. What libraries log
by the standard library goes the same way and through the same redaction.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED: Final = "[redacted]"
DEEPEST: Final = 8  # levels of containers that are looked through; what lies deeper is not shown

_SECRET_NAME: Final = re.compile(
    r"(?:^|[^a-z])(?:token|passw(?:or)?d|pwd|cookie|authorization|key|secret|signature|credential)s?(?:$|[^a-z])"
)
_WORD_BORDER: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SECRET_TEXT: Final = re.compile(
    r"(?<![0-9a-fA-F])[0-9a-fA-F]{64}(?![0-9a-fA-F])"  # tokens, keys, their hashes
    r"|(?<=resend://)[^\s\"']+"  # keys of providers
    r"|\b(?:sk|rk|re|whsec|pk)_[A-Za-z0-9_]{8,}"
    r"|\$2[abxy]\$\d\d\$[./A-Za-z0-9]{20,}"  # password hashes
    r"|(?<=://)[^/\s:@\"']*:[^/\s@\"']+(?=@)"  # user:password@ of an address
    r"|(?<=[?&]token=)[^\s&\"']+"
)


def redacted(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A processor: blanks what a field's name or the look of a value tells to be a secret, at any depth."""
    return {name: _shown(name, value, DEEPEST) for name, value in event.items()}


def _shown(name: object, value: object, depth: int) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(name, str) and _is_secret_name(name):
        return REDACTED
    if isinstance(value, str):
        return _SECRET_TEXT.sub(REDACTED, value)
    if isinstance(value, int | float):
        return value
    if depth == 0:
        return REDACTED
    if isinstance(value, Mapping):
        return {str(key): _shown(key, inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown(None, inner, depth - 1) for inner in value]
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return _SECRET_TEXT.sub(REDACTED, str(value))


def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(_WORD_BORDER.sub("_", name).lower()) is not None


def about(**facts: object) -> None:
    """Adds to every line that this task and those it starts will log: `request_id`, `ip`, `user_id`, `slice_id`."""
    structlog.contextvars.bind_contextvars(**facts)


def about_nothing() -> None:
    """Forgets what `about` added: a new request begins."""
    structlog.contextvars.clear_contextvars()


class _Lines:
    """Where lines go. A full disk or a closed pipe costs the line, never the work that wrote it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            return

    debug = info = warning = error = critical = exception = log = msg


class _FromLibraries(logging.Handler):
    """Hands what the standard library's loggers say to the same lines."""

    def __init__(self, lines: _Lines, formatter: logging.Formatter) -> None:
        super().__init__()
        self._lines = lines
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except (TypeError, ValueError) as fault:  # a library's arguments do not fit its message
            line = f"unreadable log record of {record.name}: {type(fault).__name__}"
        self._lines.msg(line)


def configure_logging(form: str, level: str, stream: TextIO | None = None) -> None:
    """Sets up logging for the process: `form` is `json` or `console`, `level` as in LOG_LEVEL."""
    target = stream or sys.stdout
    lines = _Lines(target)
    lowest = logging.getLevelNamesMapping()[level.upper()]
    before = _before()
    structlog.configure(
        processors=[*before, *_rendered(form, target)],
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *before],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendered(form, target)],
        keep_exc_info=True,
    )
    logging.basicConfig(handlers=[_FromLibraries(lines, formatter)], level=max(lowest, logging.INFO), force=True)
    for noisy in ("httpx", "httpcore", "asyncio", "urllib3", "docker"):
        logging.getLogger(noisy).setLevel(max(lowest, logging.WARNING))


def _before() -> list[Processor]:
    """What every line is given before it is written."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _rendered(form: str, stream: TextIO) -> list[Processor]:
    """How a line is written; tracebacks become text before the redaction, so that it sees them too."""
    if form == "json":
        traceback: Processor = structlog.processors.format_exc_info
        return [traceback, redacted, structlog.processors.JSONRenderer(default=_as_text)]
    # plain, for the pretty ones show the values of local variables, and those may be anything
    plain = structlog.dev.plain_traceback
    console: Any = structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False, exception_formatter=plain)
    return [structlog.processors.format_exc_info, redacted, console]


def _as_text(value: object) -> str:
    return str(value)

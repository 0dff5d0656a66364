"""HTTP/1.1 heads, sans-io: bytes in, judged heads out. The one door to the lexer; bodies are framed by the caller."""

from queunir_trio.wire.http_requests import METHODS, TARGET_AT_MOST, RequestHead, RequestReader
from queunir_trio.wire.http_responses import ResponseHead, ResponseReader, first_head
from queunir_trio.wire.http_rules import FIELDS_AT_MOST, HEAD_AT_MOST, BadMessage, Framing

__all__ = [
    "FIELDS_AT_MOST",
    "HEAD_AT_MOST",
    "METHODS",
    "TARGET_AT_MOST",
    "BadMessage",
    "Framing",
    "RequestHead",
    "RequestReader",
    "ResponseHead",
    "ResponseReader",
    "first_head",
]

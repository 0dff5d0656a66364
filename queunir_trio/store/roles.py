"""Roles of PostgreSQL: quoting their names, and their passwords as the server keeps them."""

import base64
import hashlib
import hmac
import os
from typing import Final

SCRAM_ITERATIONS: Final = 4096  # what PostgreSQL itself uses
SALT_BYTES: Final = 16


def quoted(name: str) -> str:
    """A name as SQL takes it. Statements that create or drop things take no parameters."""
    if "\0" in name:
        raise ValueError("a name in SQL holds no NUL")
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL takes it, for statements without parameters; only for what is no secret."""
    if "\0" in text or "\\" in text:
        raise ValueError("a text in SQL holds no NUL, and ours no backslash")
    return "'" + text.replace("'", "''") + "'"


def scram_verifier(password: str) -> str:
    """What the server keeps of a password (RFC 5803), so that no statement and no log of one holds the password.

    Only for passwords in ASCII, for which SASLprep changes nothing; others are sent as they are.
    """
    if not password.isascii():
        return password
    salt = os.urandom(SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded_salt, encoded_stored, encoded_server = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{encoded_salt}${encoded_stored}:{encoded_server}"

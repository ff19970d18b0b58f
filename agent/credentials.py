# SPDX-License-Identifier: Apache-2.0
"""The database credentials that Vecward holds: read from files, sent upstream, never shown.

Owns `credential:` of a guard: which header a kind of credential travels in. A credential file must not be
readable by others; its content appears in no log, record, argument or environment.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

from agent.config import ConfigError, Guard
from agent.protocols.scram import parse_verifier

MAX_CREDENTIAL = 8192
MAX_VERIFIERS = 1 << 20  # bytes of the file of clients' verifiers; about 6,000 users
VERIFIER = "verifier:"  # prefix of a client's name where its verifier is held
_PAIR = re.compile(r'"((?:[^"]|"")+)"\s+"((?:[^"]|"")*)"')
_HEADERS = {
    ("qdrant", "api_key"): ("api-key", "{}"),
    ("qdrant", "token"): ("authorization", "Bearer {}"),
    ("chroma", "token"): ("x-chroma-token", "{}"),
    ("chroma", "bearer"): ("authorization", "Bearer {}"),
}


def read_credential(guard: Guard, folder: Path) -> tuple[tuple[str, str], ...]:
    """(header, value) pairs of what the guard holds. Relative paths are taken from `folder`/credentials.

    Raises ConfigError: unknown kind, unreadable or open file, a value that cannot stand in a header.
    """
    if guard.engine == "pgvector":
        return _read_postgres(guard, folder)
    headers = []
    for kind, name in guard.credential.items():
        if (guard.engine, kind) not in _HEADERS:
            known = ", ".join(k for e, k in _HEADERS if e == guard.engine)
            raise ConfigError(
                [f"guard {guard.name}: credential {kind!r} is not one of {guard.engine}'s ({known})"]
            )
        header, form = _HEADERS[guard.engine, kind]
        headers.append((header, form.format(_read(guard.name, folder / "credentials" / name))))
    return tuple(headers)


def _read_postgres(guard: Guard, folder: Path) -> tuple[tuple[str, str], ...]:
    """("user", NAME), ("password", ...), and ("verifier:" + client's user, verifier) for each client."""
    held = []
    for kind, name in guard.credential.items():
        file = folder / "credentials" / name
        if kind == "user":
            if not 1 <= len(name.encode()) <= 63:
                raise ConfigError([f"guard {guard.name}: credential user: not a name of 1 to 63 bytes"])
            held.append((kind, name))
        elif kind == "password":
            held.append((kind, _read(guard.name, file)))
        elif kind == "verifiers":
            held += _read_verifiers(file, _text(guard.name, file, MAX_VERIFIERS, "utf-8"))
        else:
            known = "user, password, verifiers"
            raise ConfigError(
                [f"guard {guard.name}: credential {kind!r} is not one of {guard.engine}'s ({known})"]
            )
    return tuple(held)


def _read_verifiers(file: Path, text: str) -> list[tuple[str, str]]:
    """Lines of `"user" "SCRAM-SHA-256$..."`, as PgBouncer's auth_file and pg_authid.rolpassword have them."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith((";", "#")):
            continue
        pair = _PAIR.fullmatch(line.strip())
        if pair is None:
            raise ConfigError([f'{file}:{number}: not of the form "user" "SCRAM-SHA-256$..."'])
        user, verifier = (word.replace('""', '"') for word in pair.groups())
        try:
            parse_verifier(verifier)
        except ValueError as error:
            raise ConfigError([f"{file}:{number}: {error}"]) from None
        if VERIFIER + user in found:
            raise ConfigError([f"{file}:{number}: the user of this line stands above"])
        found[VERIFIER + user] = verifier
    return list(found.items())


def _read(guard: str, file: Path) -> str:
    value = _text(guard, file, MAX_CREDENTIAL, "ascii").strip()
    if not value or any(c < " " or c == "\x7f" for c in value):
        raise ConfigError([f"{file}: empty, or with characters that no header may hold"])
    return value


def _text(guard: str, file: Path, most: int, encoding: str) -> str:
    try:
        found = file.stat()
        if found.st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
            raise ConfigError([f"{file}: others may read or write it; chmod 0600"])
        if found.st_size > most:
            raise ConfigError([f"{file}: larger than {most} bytes, which is no credential"])
        return file.read_text(encoding=encoding)
    except UnicodeDecodeError:
        raise ConfigError([f"{file}: not {encoding.upper()}"]) from None
    except OSError as error:
        raise ConfigError([f"guard {guard}: {file}: {error.strerror}"]) from None

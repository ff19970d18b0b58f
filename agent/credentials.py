# SPDX-License-Identifier: Apache-2.0
"""The database credentials that Vecward holds: read from files, sent upstream, never shown.

Owns `credential:` of a guard: which header a kind of credential travels in. A credential file must not be
readable by others; its content appears in no log, record, argument or environment.
"""

from __future__ import annotations

import stat
from pathlib import Path

from agent.config import ConfigError, Guard

MAX_CREDENTIAL = 8192
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


def _read(guard: str, file: Path) -> str:
    try:
        found = file.stat()
        if found.st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
            raise ConfigError([f"{file}: others may read or write it; chmod 0600"])
        if found.st_size > MAX_CREDENTIAL:
            raise ConfigError([f"{file}: larger than {MAX_CREDENTIAL} bytes, which is no credential"])
        value = file.read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError([f"{file}: not ASCII"]) from None
    except OSError as error:
        raise ConfigError([f"guard {guard}: {file}: {error.strerror}"]) from None
    if not value or any(c < " " or c == "\x7f" for c in value):
        raise ConfigError([f"{file}: empty, or with characters that no header may hold"])
    return value

# SPDX-License-Identifier: Apache-2.0
"""`auth:` of a guard: how the clients of a database with a handshake are known. Owns what goes with what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Auth = Literal["relay", "identity", "password"]
ENGINES = ("pgvector",)  # that have a handshake which the proxy can answer in the database's place


def problem_of(engine: str, auth: Auth | None, credential: Mapping[str, str]) -> str | None:
    """What is wrong with it, None where nothing is."""
    if auth is not None and engine not in ENGINES:
        return f"`auth:` is of engine pgvector; {engine} has no handshake to answer"
    if auth == "relay" and credential:
        return "`auth: relay` lets clients authenticate themselves; drop `credential:`"
    if auth == "password" and "verifiers" not in credential:
        return "`auth: password` needs `credential: {verifiers: FILE}`, the clients' own"
    if auth_of(engine, auth, credential) == "identity" and engine in ENGINES and "user" not in credential:
        # The client's word would choose among the users that the database lets the guard be.
        return "`auth: identity` needs `credential: {user: NAME}`, the database's user for every client"
    if auth != "password" and "verifiers" in credential:
        return "`credential: {verifiers: FILE}` is read for `auth: password` only"
    return None


def auth_of(engine: str, auth: Auth | None, credential: Mapping[str, str]) -> Auth:
    """What is in force where `auth:` is left out: who holds nothing lets clients authenticate themselves."""
    return auth or ("identity" if credential and engine in ENGINES else "relay")

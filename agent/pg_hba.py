# SPDX-License-Identifier: Apache-2.0
"""Lines of a PostgreSQL's pg_hba.conf whose meaning changes because the database sees the proxy's address.

Owns finding the file of the server that listens on a port, and reading its `host` lines (PostgreSQL docs,
20.1). Reads only; what cannot be read is said, never guessed. Included files are named, not followed.
"""

from __future__ import annotations

import re
from pathlib import Path

import psutil

MAX_FILE = 1 << 20  # bytes of pg_hba.conf or postgresql.conf that are read
_LOCAL = re.compile(r"127\.|::1(/|$)|localhost$")
_EVERYONE = ("all", "0.0.0.0/0", "::/0", "samehost", "samenet")


class Unreadable(Exception):
    """The rules of that server could not be read; the message says why."""


def find_rules(port: int) -> Path:
    """pg_hba.conf of the PostgreSQL that listens on `port`. Raises Unreadable."""
    try:
        pids = {c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
        for pid in sorted(p for p in pids if p):
            process = psutil.Process(pid)
            if process.name().startswith("postgres"):
                return _rules_of(Path(f"/proc/{pid}/root"), Path(process.cwd()), process.cmdline())
    except (psutil.Error, OSError) as error:
        raise Unreadable(str(error)) from None
    raise Unreadable(f"no process named postgres is seen to listen on port {port}")


def _rules_of(root: Path, data: Path, command: list[str]) -> Path:
    """`hba_file` of the command line or of the configuration, else where it stands by default."""
    set_there = dict(word.split("=", 1) for word in command if "=" in word)
    hba = set_there.get("hba_file") or set_there.get("--hba-file")
    if hba is None:
        config = (
            set_there.get("config_file") or set_there.get("--config-file") or str(data / "postgresql.conf")
        )
        found = re.findall(r"(?m)^\s*hba_file\s*=?\s*'([^']+)'", _read(_under(root, Path(config))))
        hba = found[-1] if found else str(data / "pg_hba.conf")
    return _under(root, data / hba)


def _under(root: Path, path: Path) -> Path:
    return root / str(path).lstrip("/")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE).decode("utf-8", "replace")
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None


def changed_lines(path: Path) -> list[str]:
    """ "LINE: text: why" of each line that acts otherwise through the proxy. Raises Unreadable."""
    found = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        words = line.partition("#")[0].split()
        if len(words) >= 2 and words[0].startswith("include"):
            found.append(f"{number}: {' '.join(words)}: not looked into")
        if len(words) < 5 or not words[0].startswith("host"):
            continue
        why = _why(words[0], words[3].strip('"'), words[-1] if "=" not in words[-1] else words[4])
        if why is not None:
            found.append(f"{number}: {' '.join(words)}: {why}")
    return found


def _why(kind: str, address: str, method: str) -> str | None:
    if method == "cert" or kind == "hostgssenc" or method in ("gss", "sspi", "ident"):
        return "the proxy, not the client, is who proves itself" + (
            " (tls.present_cert)" if method == "cert" else ""
        )
    if _LOCAL.match(address):
        return "now also of remote callers that a policy rule lets in" + (
            ", without a password" if method == "trust" else ""
        )
    if address not in _EVERYONE:
        return "matches no caller any more: they come from the proxy's address"
    return None

# SPDX-License-Identifier: Apache-2.0
"""Turns /proc/PID/cmdline into a bounded argument list without secrets, and finds the script.

Pure. The text is the process's own and may say anything: nothing here is attested. Values that look
like credentials are cut out before anything else sees them, because arguments go into the record.
"""

from __future__ import annotations

import posixpath
import re

MAX_BYTES = 16 * 1024  # of cmdline that is read
MAX_ARGS = 64
MAX_ARG = 1024  # characters of one argument
CUT = "…"
HIDDEN = "[redacted]"

# Names whose value is hidden: words that mean a secret wherever they stand, and words that do so
# only as a part of a name of their own ("api-key", but not "monkey").
_ANYWHERE = "password|passwd|passphrase|passcode|secret|token|credentials?|apikey|authorization"
_ALONE = "pass|pwd|key|bearer|auth"
_NAME = rf"-{{0,2}}(?:[A-Za-z0-9_.-]*(?:{_ANYWHERE})|(?:[A-Za-z0-9]+[-_.])*(?:{_ALONE}))"
_SECRET_NAME = re.compile(rf"^{_NAME}\Z", re.IGNORECASE)
_SECRET_PAIR = re.compile(rf"^({_NAME}[=:])(.+)\Z", re.IGNORECASE | re.DOTALL)
_HEADER = re.compile(
    r"^([A-Za-z0-9-]*(?:authorization|api-key|token|cookie|secret)[A-Za-z0-9-]*\s*:)", re.IGNORECASE
)
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^/\s:@]*:)[^/\s@]+@")
_DSN = re.compile(r"\b(password\s*=\s*)('[^']*'|\S+)", re.IGNORECASE)
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


def _hide(arg: str) -> str:
    if pair := _SECRET_PAIR.match(arg):
        return pair[1] + HIDDEN
    if header := _HEADER.match(arg):
        return f"{header[1]} {HIDDEN}"
    arg = _USERINFO.sub(rf"\g<1>{HIDDEN}@", arg)
    arg = _DSN.sub(rf"\g<1>{HIDDEN}", arg)
    return _JWT.sub(HIDDEN, arg)


def redact(args: list[str]) -> list[str]:
    """`args` with the values of credential options, headers, URLs and JWTs replaced."""
    shown: list[str] = []
    hide_next = False
    for arg in args:
        shown.append(HIDDEN if hide_next and not arg.startswith("--") else _hide(arg))
        hide_next = arg.startswith("-") and bool(_SECRET_NAME.match(arg))
    return shown


def parse_cmdline(raw: bytes) -> tuple[str, ...]:
    """Arguments from NUL-separated bytes; bytes that are not UTF-8 are shown as ``\\xNN``."""
    text = raw[:MAX_BYTES].rstrip(b"\0").decode("utf-8", "backslashreplace")
    args = text.split("\0") if text else []
    # Secrets are cut from whole arguments, bounds come after: a bound must not hide a marker.
    shown = redact(args)
    bounded = [arg if len(arg) <= MAX_ARG else arg[:MAX_ARG] + CUT for arg in shown[:MAX_ARGS]]
    if len(shown) > MAX_ARGS or len(raw) > MAX_BYTES:
        bounded.append(CUT)
    return tuple(bounded)


_INTERPRETERS = re.compile(
    r"^(?:python|pypy|perl|ruby|node|nodejs|bash|dash|sh|zsh|ksh|php|lua|Rscript)[0-9.]*$"
)
_PYTHON_VALUE = frozenset(["-W", "-X", "--check-hash-based-pycs"])
_NODE_VALUE = frozenset(["-r", "--require", "--import", "--loader"])
_INLINE = re.compile(r"^(?:-|-[A-Za-z]*[ce]|--eval|--print)$")


def find_script(argv: tuple[str, ...], cwd: str | None) -> tuple[str | None, str | None]:
    """(script, None) or (None, why not): the file an interpreter was told to run, by its arguments."""
    name = posixpath.basename(argv[0]).lstrip("-") if argv else ""
    if not _INTERPRETERS.match(name):
        return None, "not an interpreter"
    python = name.startswith(("python", "pypy"))
    takes_value = _PYTHON_VALUE if python else _NODE_VALUE if name.startswith("node") else frozenset[str]()
    rest = iter(argv[1:])
    for arg in rest:
        if python and arg == "-m":
            return f"-m {next(rest, '')}", None
        if arg in takes_value:
            next(rest, None)
        elif _INLINE.match(arg):
            return None, "code from an argument or standard input"
        elif not arg.startswith("-"):
            absolute = arg.startswith("/") or cwd is None
            return posixpath.normpath(arg if absolute else posixpath.join(cwd or "", arg)), None
    return None, "interactive"

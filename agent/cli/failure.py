# SPDX-License-Identifier: Apache-2.0
"""How a command ends when it does not end well: the exit codes, and the one error they come with.

The only place that maps a reason to a code. An error is one line on stderr, with a hint; only the problems
of a file of ours (a line for each) may be several.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """Exit codes; names and numbers are a promise to scripts."""

    DONE = 0
    FAILED = 1  # refused or failed, with a reason
    USAGE = 2
    UNREACHABLE = 3  # the agent does not answer
    UNPROVEN = 4  # verification failed
    UNCONFIGURED = 78  # a unit whose configuration is broken (EX_CONFIG): not to be tried again


class Fail(Exception):
    """Ends the command: `message` says what is wrong, `hint` what to do, `code` how to exit.

    `lines` lets the message have several lines; without it a newline in what it quotes is shown as one.
    """

    def __init__(
        self, message: str, hint: str | None = None, code: Code = Code.FAILED, *, lines: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.lines = lines

    @classmethod
    def from_os(cls, what: str, error: OSError) -> Fail:
        """The reason of a failed system call, with what usually helps."""
        hint = None
        match error:
            case FileNotFoundError():
                hint = "name the evidence with --dir DIR, or the configuration with -c FILE"
            case PermissionError():
                hint = "run as root, or as a member of the group that may read evidence (vecward-audit)"
        return cls(f"{what}: {error.strerror or error}", hint)

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message

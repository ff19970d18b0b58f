# SPDX-License-Identifier: Apache-2.0
"""Saying that something of ours went wrong, without any byte of a client. Owns that one line."""

from __future__ import annotations

import sys


def say_bug(error: BaseException) -> None:
    """Type and place on stderr: a message might hold what a client sent."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
    print(
        f"vecward: bug: {type(error).__name__} at {where}; the connection was closed",
        file=sys.stderr,
        flush=True,
    )

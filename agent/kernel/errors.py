# SPDX-License-Identifier: Apache-2.0
"""The one error of the kernel side: what is missing, what that costs, and what to do about it."""

from __future__ import annotations


class SteeringError(Exception):
    """Steering cannot be set up or used. ``missing`` names the thing, ``hint`` what a sysadmin can do."""

    def __init__(self, missing: str, hint: str = "") -> None:
        super().__init__(f"{missing} ({hint})" if hint else missing)
        self.missing = missing
        self.hint = hint

# SPDX-License-Identifier: Apache-2.0
"""Vecward, the agent: everything with a socket, a clock or a file. Pure policy is the package beside it."""

__version__ = "0.1.0"

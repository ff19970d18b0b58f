# SPDX-License-Identifier: Apache-2.0
"""Tests; a folder is a ring (see CONTRIBUTING.md)."""

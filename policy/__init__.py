# SPDX-License-Identifier: Apache-2.0
"""Pure policy: what is asked by whom, and whether it may be. No I/O, no clock, no agent imports."""

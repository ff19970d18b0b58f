# SPDX-License-Identifier: Apache-2.0
"""``make demo``: Vecward on a real Chroma, told to a person step by step, and checked at every step.

Owns the story and nothing of Vecward: what it shows are the ordinary commands and their own output. Bias:
a demo that shows what is not so is a failure; every step compares what was printed with what was said.
"""

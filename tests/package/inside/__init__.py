# SPDX-License-Identifier: Apache-2.0
"""What runs inside of a booted system: ``python3 -B -m tests.package.inside STEP``, as root.

Owns one package's life on one machine. Standard library only, nothing of the checkout, which is not
there; runs on every Python that the package supports. Bias: what is not seen to hold
within a generous time has failed.
"""

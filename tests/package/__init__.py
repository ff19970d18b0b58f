# SPDX-License-Identifier: Apache-2.0
"""The ring `package`: the built packages in a booted system, from install to purge (packaging/rig).

Owns what a package must do on a real machine. `make test` runs the container legs of Debian 12; the others
are minutes each and belong to `make soak` and `make test-package`.
"""

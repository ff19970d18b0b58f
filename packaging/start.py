# SPDX-License-Identifier: Apache-2.0
"""The installed ``vecward``: /usr/lib/vecward/__main__.py, run by /usr/bin/vecward with the Python it chose.

Owns where imports come from: this folder, its libraries (vendor), the standard library, and nothing else.
"""

import sys

sys.path.insert(1, f"{sys.path[0]}/vendor")

from agent.cli.main import main

main(prog_name="vecward")

# SPDX-License-Identifier: Apache-2.0
"""``python -m agent`` is the ``vecward`` command."""

from agent.cli.main import main

if __name__ == "__main__":
    main(prog_name="vecward")

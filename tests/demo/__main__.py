# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.demo``: exit 0 when all was as told, 1 with one line when not, 130 after ^C.

HOST=1 shows it on the host's own network and root cgroup; VECWARD_DEMO_FAST=1 leaves out the pauses.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from agent.kernel.errors import SteeringError
from tests import venvs
from tests.demo.ground import Cannot, Ground
from tests.demo.screen import Differs, Screen
from tests.demo.story import Story


def main() -> int:
    screen = Screen(fast=os.environ.get("VECWARD_DEMO_FAST") == "1")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell had it ignored
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))  # all of them clean up
    log = ""
    try:
        with Ground(on_host=os.environ.get("HOST") == "1") as ground:
            story = Story(ground, screen)
            try:
                story.tell()
            finally:
                log = story.stage.log.read_text() if story.stage.log.exists() else ""
        story.close()
        return 0
    except KeyboardInterrupt:
        screen.error("stopped; all of it was taken away")
        return 130
    except (Cannot, SteeringError, venvs.NoVenv) as error:
        screen.error(f"cannot be shown here: {error}")
        return 1
    except (Differs, subprocess.TimeoutExpired) as error:
        if log:
            screen.error(f"vecward run said last:\n{log[-2000:]}")
        screen.error(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())

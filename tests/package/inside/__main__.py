# SPDX-License-Identifier: Apache-2.0
"""``python3 -B -m tests.package.inside STEP...``: steps by name; exit 1 at the first that fails."""

from __future__ import annotations

import sys
import traceback

from tests.package.inside import failures, ground, life

STEPS = {**life.STEPS, **failures.STEPS}


def main() -> int:
    for name in sys.argv[1:]:
        try:
            STEPS[name]()
        except Exception:
            traceback.print_exc(file=sys.stdout)
            ground.explain()
            return 1
    return 0


sys.exit(main())

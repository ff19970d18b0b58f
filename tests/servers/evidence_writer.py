# SPDX-License-Identifier: Apache-2.0
"""A worker process that records as fast as it can until it is killed. Its descriptors come from outside.

Reads a byte on stdin to start; writes a line ``seq n`` on stdout after each released exchange, so that the
test knows what was released before the kill.
"""

from __future__ import annotations

import hashlib
import os
import sys

from agent.evidence.recorder import Recorder
from agent.evidence.segment import SegmentFile
from agent.protocols.session import Intent, Result
from policy.model import Action, Verdict
from policy.operation import Operation


def main() -> None:
    stream, first, second = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    turns: list[object] = []
    recorder = Recorder(
        stream, SegmentFile(first, 0), SegmentFile(second, 1), host="h", boot="b", schedule=turns.append
    )
    recorder.open_session("s", {"pid": os.getpid()})
    operation = Operation("qdrant", "q", "m", frozenset({Action.SEARCH}))
    verdict = Verdict("allow", "r", None, "", "p")
    n = 0
    while True:
        n += 1
        body = os.urandom(3000 if n % 3 else 40_000)
        digest = hashlib.sha256(body).digest()
        released: list[bool] = []
        recorder.put("s", [Intent(n, operation, verdict, {}, b"{}", digest, 2)], "strict", released.append)
        recorder.flush()
        recorder.put(
            "s",
            [Result(n, "answered", 200, {}, body, digest, len(body), digest, len(body))],
            "strict",
            released.append,
        )
        recorder.flush()
        if released != [True, True]:
            sys.exit("a write failed")
        os.write(1, b"%d %d\n" % (recorder.seq, n))
        if n % 20 == 0:
            recorder.signed(recorder.seq)


if __name__ == "__main__":
    main()

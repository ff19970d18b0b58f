# SPDX-License-Identifier: Apache-2.0
"""What one exchange costs in an HTTP/1.1 session, without sockets, policy, or an engine's own work.

Run: ``python -m tests.bench.http1_session``. Prints microseconds of CPU per exchange, median of five.
"""

from __future__ import annotations

import statistics
import time

from agent.protocols.http import Answer, Request, Response, Route
from agent.protocols.http1 import Http1Session
from agent.protocols.http1_tap import Http1Tap
from agent.protocols.session import Session
from policy.model import Action, Mask, RecordLevel, Verdict
from policy.operation import Operation

_BODY = b'{"vector":[' + b",".join([b"0.0123456"] * 756) + b'],"limit":10,"with_payload":true}'
_HEAD = (
    b"POST /collections/contracts/points/query HTTP/1.1\r\nHost: 127.0.0.1:6333\r\nAccept: */*\r\n"
    b"Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nUser-Agent: python-client/1.0\r\n"
    b"api-key: not-a-real-key\r\nContent-Length: %d\r\nContent-Type: application/json\r\n\r\n"
)
REQUEST = _HEAD % len(_BODY) + _BODY
ROUTE = Route("POST /collections/{c}/points/query", True, reads_body=True, answer_rows=True)
OPERATION = Operation("bench", "g", ROUTE.method, frozenset({Action.SEARCH}), frozenset({"contracts"}), 10)


class FreeEngine:
    """An engine whose own work costs nothing, so that what is left is the session's."""

    name = "bench"
    credential_headers = frozenset({"api-key", "authorization"})
    masked_fields_known = frozenset({"payload"})

    def route(self, request: Request) -> Route:
        return ROUTE

    def operation(self, request: Request, route: Route) -> Operation:
        return OPERATION

    def learn(self, lookup: object, response: Response) -> None: ...

    def rewrite(self, request: Request, operation: Operation, verdict: Verdict) -> Request:
        return request

    def mask(self, request: Request, operation: Operation, verdict: Verdict, response: Response) -> Answer:
        return Answer(response.body)

    def observe(self, request: Request, operation: Operation, response: Response) -> Answer:
        return Answer(response.body)

    def refuse(self, status: int, reason: str, message: str, rule: str | None) -> Response:
        return Response(status, (), b"{}")

    def digest(self, body: bytes) -> tuple[bytes, int]:
        return body, 0


class FixedJudge:
    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict

    def __call__(self, operation: Operation) -> Verdict:
        return self._verdict

    def reads_body(self, operation: Operation) -> bool:
        return True


def answer(size: int) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ncontent-type: application/json\r\ndate: x\r\n\r\n"
    return head % size + b"x" * size


def measure(session: Session, response: bytes, rounds: int) -> float:
    """Median microseconds of CPU per exchange; the answer comes in reads of at most 64 KiB."""
    reads = [response[at : at + 65536] for at in range(0, len(response), 65536)]
    took = []
    for _ in range(5):
        begin = time.process_time()
        for _ in range(rounds):
            session.client_data(REQUEST)
            for read in reads:
                session.server_data(read)
        took.append((time.process_time() - begin) / rounds * 1e6)
    return statistics.median(took)


def main() -> None:
    levels: tuple[RecordLevel, ...] = ("meta", "masked")
    for size, rounds in ((2400, 4000), (150_000, 400)):
        for level in levels:
            verdict = Verdict("allow", "r", "f:1", "", "h", level=level)
            masked = Verdict(
                "allow", "r", "f:1", "", "h", level=level, masks=(Mask("r", field="payload.ssn"),)
            )
            for name, session in (
                ("enforce", Http1Session(FreeEngine(), FixedJudge(verdict), "g")),
                ("enforce, mask", Http1Session(FreeEngine(), FixedJudge(masked), "g")),
                ("observe", Http1Tap(FreeEngine(), FixedJudge(verdict), "g")),
            ):
                spent = measure(session, answer(size), rounds)
                print(f"{size:>7} B answer  {level:<7} {name:<14} {spent:6.1f} us")


if __name__ == "__main__":
    main()

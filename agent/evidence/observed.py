# SPDX-License-Identifier: Apache-2.0
"""What was asked, by whom, folded for ``policy learn``: one pass over the segments, bodies left unread.

Which sessions and where to begin come from the index; what was asked comes from the frames themselves. Memory
grows with the kinds of requests and the sessions, not with the requests. What cannot be read is in the
archive's problems.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.evidence.archive import Place
from agent.evidence.filter import Filter
from agent.evidence.frames import IntentFrame, OpaqueFrame, VerdictPart
from agent.evidence.query import Query
from agent.evidence.views import Session
from policy.learn import Observations, Process
from policy.login import CANCEL_METHOD, Login, recorded_login, with_login
from policy.model import Action, Subject
from policy.operation import Operation

_ACTIONS = frozenset(map(str, Action))
Judged = Callable[[Session], Subject]
Advance = Callable[[int], None]


def observe(
    query: Query,
    wanted: Filter,
    subject_of: Judged,
    *,
    refused: bool = False,
    advance: Advance = lambda by: None,
) -> tuple[Observations, int]:
    """Everything asked in the sessions and the time wanted, and how many sessions that was.

    `refused`: take also what no rule allowed under enforce. What a rule was against is never taken.
    """
    seen = Observations()
    sessions: dict[str, dict[str, tuple[Session, Subject, Process | None]]] = {}
    for session in query.sessions(wanted):
        if session.evidence is not None:
            subject = subject_of(session)
            known = (session, subject, _process(session))
            sessions.setdefault(session.evidence.stream, {})[session.session] = known
    logged_in: dict[tuple[str, Login], Subject] = {}
    for stream, mine in sorted(sessions.items()):
        for batch in query.archive.scan(stream, _start(query, stream, wanted.since), bodies=False):
            for item in batch.frames:
                frame = item.frame
                if not isinstance(frame, IntentFrame | OpaqueFrame) or not _in_time(frame.at, wanted):
                    continue
                found = mine.get(frame.session)
                if found is None:
                    continue
                session, subject, process = found
                if isinstance(frame, OpaqueFrame):
                    if session.ended is not None and not session.bytes_in:
                        continue  # it said nothing: a port check
                    guard, engine = session.guard or "", session.engine or ""
                    seen.add_unread(guard, engine, subject, frame.protocol, frame.at, frame.session, process)
                    continue
                if frame.op.method == CANCEL_METHOD:
                    continue  # allowed by what allows its session
                login = recorded_login(frame.op.engine, frame.head)
                if login is not None and (frame.session, login) not in logged_in:
                    logged_in[frame.session, login] = with_login(subject, login)
                subject = subject if login is None else logged_in[frame.session, login]
                operation = _operation(frame)
                why = _against(frame.verdict, refused)
                if why is None:
                    seen.add(subject, operation, frame.at, frame.session, process)
                else:
                    seen.add_refused(operation, subject, why)
            advance(batch.end - batch.place.offset)
    return seen, sum(map(len, sessions.values()))


def _in_time(at: int, wanted: Filter) -> bool:
    return (wanted.since is None or at >= wanted.since) and (wanted.until is None or at <= wanted.until)


def _start(query: Query, stream: str, since: int | None) -> Place | None:
    """The beginning of the segment that holds the stream's last exchange before `since`."""
    if since is None:
        return None
    row = query.index.database.execute(
        "SELECT e.segment FROM exchanges e JOIN sessions s ON s.id = e.sid JOIN streams t ON t.id = s.stream "
        "WHERE t.stream = ? AND e.at < ? AND e.segment IS NOT NULL ORDER BY e.at DESC LIMIT 1",
        (stream, since),
    ).fetchone()
    return None if row is None else Place(stream, row[0], 0)


def _process(session: Session) -> Process | None:
    if session.pid is None:
        return None
    program = (session.exe or session.comm or "?").rpartition("/")[2]
    return session.pid, session.start_time or 0, program


def _operation(frame: IntentFrame) -> Operation:
    """What `learn` needs of it; an action that this build does not know is unknown."""
    op = frame.op
    known = frozenset(Action(a) if a in _ACTIONS else Action.UNKNOWN for a in op.actions)
    return Operation(
        op.engine, op.guard, op.method, known or frozenset({Action.UNKNOWN}), frozenset(op.collections),
        top_k=op.top_k, unbounded=op.unbounded, vectors=op.vectors,
    )  # fmt: skip


def _against(verdict: VerdictPart, refused: bool) -> str | None:
    """Why it is not to be learnt from: a rule refused it, or would have."""
    if "deny" not in (verdict.outcome, verdict.would):
        return None
    if verdict.rule is not None:
        did = "refused" if verdict.outcome == "deny" else "would refuse"
        return f"rule {verdict.rule} {did} it"
    return (
        "no rule allowed it, in enforce; --refused proposes it"
        if verdict.outcome == "deny" and not refused
        else None
    )

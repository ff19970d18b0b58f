# SPDX-License-Identifier: Apache-2.0
"""Random and damaged PostgreSQL traffic: no exception but `ProtocolError`, and nothing unjudged runs.

A server of a few words (``postgres_server``) answers. The oracle is what it ran: every text must have been
let through by the judge, with those parameters and that number of rows. Without damage and refusals the
client must get what it would have got without us.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from agent.protocols.postgres_forms import (
    Bind,
    Execute,
    Named,
    Parse,
    write_bind,
    write_execute,
    write_named,
    write_parse,
    write_query,
)
from agent.protocols.postgres_messages import Back, Framer, message, server_limits
from agent.protocols.postgres_query import QueryPhase
from agent.protocols.postgres_tap import PostgresTap
from agent.protocols.session import Abort, Intent, Output, ProtocolError, Result
from policy.model import Mask
from tests.unit.protocols.fake_sql import ALLOW, FakeSqlEngine, SpyJudge
from tests.wire.conversations import Played, Step, play
from tests.wire.postgres_conversations import load, names, phase
from tests.wire.postgres_server import Server
from tests.wire.test_postgres_conversations import STARTUP

TEXTS = (
    b"SELECT 1",
    b"SELECT 5",
    b"SELECT 40 vector",
    b"SELECT forbidden",
    b"SELECT x LIMIT $1",
    b"BEGIN",
    b"COMMIT",
    b"ROLLBACK",
    b"COPY t from STDIN",
    b"COPY t to STDOUT",
    b"SELECT broken",
    b"SELECT syntax",
    b"SET path",
    b"CREATE x",
    b"PREPARE s1 as SELECT 7",
    b"DEALLOCATE s1",
    b"DEALLOCATE all",
    b"DECLARE p1 cursor",
    b"CLOSE p1",
    b"FETCH p1",
    b"INSERT x",
    b"INSERT broken",
    b"SELECT unreadable",
    b"SELECT 9 limited",
    b"DISCARD all",
    b"",
    b"INSERT noisy",
    b"COPY t from STDIN twice",
    b"SELECT 1; COMMIT; SELECT 2",
    b"SELECT 1; SELECT broken; INSERT x",
    b"SELECT unplannable",
    b"SELECT unprovable",
)
PLAIN = tuple(
    text
    for text in TEXTS
    if not any(w in text for w in (b"forbidden", b"LIMIT", b"unreadable", b"limited", b"unpl", b"unpr"))
)
NAMES = (b"", b"", b"s1", b"s2")
PORTALS = (b"", b"", b"p1", b"p2")
END = (message(ord("c")), message(ord("S"))) * 4
FORBIDDEN = re.compile("(?<![a-z])forbidden(?![a-z])")  # as the judge of these tests reads words


def stream(r: random.Random, texts: tuple[bytes, ...] = TEXTS) -> list[bytes]:
    """What a client might send, sensible or not."""
    found: list[bytes] = []
    for _ in range(r.randint(1, 25)):
        name, portal, text = r.choice(NAMES), r.choice(PORTALS), r.choice(texts)
        bind = write_bind(Bind(portal, name, (), r.choice(((), (), (), (b"5",), (b"1000",))), ()))
        execute = write_execute(Execute(portal, r.choice((0, 0, 0, 1, 2))))
        parse = write_parse(Parse(name, text.split(b";")[0], ()))
        of = r.choice(("statement", "portal"))
        named = Named(of, name if of == "statement" else portal)  # type: ignore[arg-type]
        match r.choice("QPPPPBBEEEDDCSSSSHdcfF"):
            case "Q":
                found.append(write_query(text))
            case "P":
                found += [parse, bind, execute][: r.randint(1, 3)]
            case "B":
                found.append(bind)
            case "E":
                found.append(execute)
            case "D":
                found.append(write_named(ord("D"), named))
            case "C":
                found.append(write_named(ord("C"), named))
            case "d":
                found.append(message(ord("d"), r.choice((b"data", b"nonsense"))))
            case "f":
                found.append(message(ord("f"), b"no\0"))
            case "F":
                found.append(message(ord("F"), bytes(10)))
            case kind:
                found.append(message(ord(kind)))
    return found


class Run:
    """A session between a client's stream and a server, with reads cut and delayed at random."""

    def __init__(self, r: random.Random, session: QueryPhase) -> None:
        self.r = r
        self.session = session
        self.server = Server()
        self.played = Played()
        self.waiting = b""  # what the server has said and the session has not read

    def take(self, out: Output, *, patient: bool) -> None:
        while True:
            self.played.add(out)
            if out.to_server:
                self.waiting += self.server.feed(b"".join(out.to_server))
            if not self.waiting or (patient and self.r.random() < 0.3):
                return
            at = len(self.waiting) if self.r.random() < 0.7 else self.r.randint(1, len(self.waiting))
            data, self.waiting = self.waiting[:at], self.waiting[at:]
            out = self.session.server_data(data)

    def client(self, messages: list[bytes]) -> None:
        unsent = b""
        for one in messages:
            unsent += one
            if self.r.random() < 0.5:
                continue
            at = len(unsent) if self.r.random() < 0.7 else self.r.randint(0, len(unsent))
            data, unsent = unsent[:at], unsent[at:]
            self.take(self.session.client_data(data), patient=True)
        self.take(self.session.client_data(unsent), patient=False)


def check_server(server: Server, texts: set[str]) -> None:
    for text in server.parsed:
        assert text in texts, text
    for text, values, rows in server.ran:
        assert text in texts, text
        if "LIMIT $1" in text and values and values[0] == b"1000":
            assert 0 < rows <= 100


ALLOWED = {t.decode() for t in TEXTS if b"forbidden" not in t and b"unreadable" not in t}
ALLOWED |= {part.strip() for text in ALLOWED for part in text.split(";")} | {"SELECT catalog"}


def test_random_traffic_runs_nothing_that_was_not_allowed(sized: Callable[[int, int], int]) -> None:
    reasons: set[str] = set()
    for seed in range(sized(1500, 40_000)):
        r = random.Random(seed)
        verdict = r.choice((ALLOW, replace(ALLOW, masks=(Mask("r", field="payload.ssn"),))))
        session, conversation, _ = phase(verdict, asks=r.random() < 0.5)
        run = Run(r, session)
        try:
            run.client([*stream(r), *END])
        except ProtocolError as error:
            reasons.add(error.reason)
        check_server(run.server, ALLOWED)
        if verdict.masks:
            assert b"secret" not in run.played.to_client, seed
        run.played.add(session.abandon("the end"))
        ended = [x.n for x in run.played.records if isinstance(x, Result | Abort)]
        assert sorted(ended) == sorted(x.n for x in run.played.of(Intent)), seed
        assert len(conversation.learnt) <= len(run.server.ran)
    assert reasons <= {"copy"}


def messages_of(data: bytes) -> list[bytes]:
    """As they are told apart by a client: of an error only its code, which is what states hang on."""
    framer = Framer("server", server_limits(1 << 20))
    framer.feed(data)
    found: list[bytes] = []
    while (taken := framer.take()) is not None:
        if taken.kind == Back.ERROR:
            code = taken.raw[taken.raw.index(b"\0C") + 2 :][:5]
            # In a failed transaction a portal that is not known here may still stand there, of no use.
            found.append(b"E25P02" if code == b"34000" else b"E" + code)
        else:
            found.append(taken.raw)
    return found


def test_without_refusals_the_client_gets_what_the_database_says(sized: Callable[[int, int], int]) -> None:
    compared = 0
    for seed in range(sized(1500, 40_000)):
        r = random.Random(seed)
        # Whether a COPY fails before or after it has passed over a Sync is a race in the database too.
        sent = [m for m in stream(r, PLAIN) if m[:1] != b"F" and b"nonsense" not in m]
        if any(b"PREPARE s1" in m or b"DECLARE p1" in m for m in sent):
            continue  # names of SQL are not usable by messages here, which is told in the refusal
        session, _, _ = phase()
        run = Run(r, session)
        try:
            run.client([*sent, *END])
        except ProtocolError:
            continue
        direct = Server()
        expected = direct.feed(b"".join([*sent, *END]))
        # A database reads a client's CopyData that comes before it asked; so the streams are the same here.
        assert messages_of(run.played.to_client) == messages_of(expected), (seed, sent)
        compared += 1
    assert compared > 300


def test_damaged_traffic_raises_nothing_else_and_runs_nothing_else(
    sized: Callable[[int, int], int],
) -> None:
    bases = [load(name) for name in names()]
    for seed in range(sized(3000, 100_000)):
        r = random.Random(seed)
        if r.random() < 0.5:
            session, _, _ = phase(asks=False)
            steps = damage(r, list(r.choice(bases)))
            try:
                played = play(session, steps)
            except ProtocolError:
                continue
            assert not FORBIDDEN.search(played.to_server.decode("latin-1").lower())
        else:
            session, _, _ = phase(asks=r.random() < 0.5)
            run = Run(r, session)
            with suppress(ProtocolError):
                run.client([hurt(r, m) if r.random() < 0.1 else m for m in stream(r)])
            for text in [*run.server.parsed, *(text for text, _, _ in run.server.ran)]:
                assert not FORBIDDEN.search(text.lower()), (seed, text)


def hurt(r: random.Random, data: bytes) -> bytes:
    at = r.randint(0, len(data) - 1)
    match r.randint(0, 3):
        case 0:
            return data[:at] + bytes((r.randint(0, 255),)) + data[at + 1 :]
        case 1:
            return data[:at] + data[at + 1 :]
        case 2:
            return data[:at] + r.randbytes(r.randint(1, 5)) + data[at:]
        case _:
            return data[:at]


def damage(r: random.Random, steps: list[Step]) -> list[Step]:
    for _ in range(r.randint(1, 4)):
        index = r.randrange(len(steps))
        side, data = steps[index]
        match r.randint(0, 4):
            case 0:
                steps.insert(index, steps[r.randrange(len(steps))])
            case 1 if len(steps) > 1:
                del steps[index]
            case 2:
                steps.insert(index, ("client", write_query(b"SELECT forbidden")))
            case _:
                if data:
                    steps[index] = (side, hurt(r, data))
    return [(side, data) for side, data in steps if data]


def test_no_damage_is_noticed_in_observe(sized: Callable[[int, int], int]) -> None:
    bases = [load(name) for name in names()]
    for seed in range(sized(500, 20_000)):
        r = random.Random(seed)
        steps: list[Step] = [("client", STARTUP[0]), ("server", STARTUP[1]), *r.choice(bases)]
        steps = damage(r, steps)
        played = play(PostgresTap(FakeSqlEngine(), SpyJudge(), "g"), steps)
        assert played.to_server == b"".join(data for side, data in steps if side == "client")
        assert played.to_client == b"".join(data for side, data in steps if side == "server")

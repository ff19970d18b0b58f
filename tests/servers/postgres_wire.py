# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL client that can stop anywhere: it brings a session to a phase and leaves it there.

Runs inside of a stage's arena (`Arena.run`). `PHASES` maps names to functions that bring a `Wire` there.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final, Literal

from agent.protocols.postgres_forms import (
    Bind,
    Execute,
    Parse,
    read_backend_key,
    write_bind,
    write_execute,
    write_parse,
    write_query,
)
from agent.protocols.postgres_messages import HEADER, Back, Front, message, startup_message
from tests.kernel.arena import PATIENCE
from tests.servers.postgres import OWNER, PORT

SSL_REQUEST: Final = struct.pack(">II", 8, 80877103)
MARK: Final = "/* here */"  # stands in the statement in which a phase is
LONG: Final = f"SELECT n, repeat('x', 400) {MARK} FROM generate_series(1, 30000) AS n"  # some 12 MB
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


class Wire:
    """One connection. Reads are bounded by `PATIENCE` for each; a reset raises ConnectionError."""

    def __init__(self, **options: str) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(PATIENCE)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.sock.connect(("127.0.0.1", PORT))
        self.options = options
        self.held = b""
        self.key = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def startup(self) -> None:
        words = {"user": OWNER, "database": "postgres", **self.options}
        self.sock.sendall(startup_message(0, {k.encode(): v.encode() for k, v in words.items()}))

    def login(self) -> Wire:
        self.startup()
        self.until(Back.READY_FOR_QUERY)
        return self

    def send(self, *parts: bytes) -> None:
        self.sock.sendall(b"".join(parts))

    def take(self) -> tuple[int, bytes]:
        """The next message: kind and body. EOFError at the end."""
        while len(self.held) < HEADER or len(self.held) < 1 + int.from_bytes(self.held[1:5], "big"):
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self.held += data
        size = 1 + int.from_bytes(self.held[1:5], "big")
        raw, self.held = self.held[:size], self.held[size:]
        if raw[0] == Back.BACKEND_KEY_DATA:
            self.key = raw[HEADER:]
        return raw[0], raw[HEADER:]

    def readable(self, seconds: float) -> bool:
        return bool(self.held) or bool(select.select([self.sock], [], [], seconds)[0])

    def writable(self, seconds: float) -> bool:
        return bool(select.select([], [self.sock], [], seconds)[1])

    def until(self, *kinds: int) -> list[tuple[int, bytes]]:
        found = [self.take()]
        while found[-1][0] not in kinds:
            found.append(self.take())
        return found

    def ask(self, text: str) -> list[tuple[int, bytes]]:
        self.send(write_query(text.encode()))
        return self.until(Back.READY_FOR_QUERY)

    def cancel(self, key: bytes | None = None) -> None:
        """Ask for the cancel of this session's statement, and wait until the request was taken."""
        pid, secret = read_backend_key(key or self.key)
        body = struct.pack(">II", 80877102, pid) + secret
        with socket.create_connection(("127.0.0.1", PORT), PATIENCE) as other:
            other.sendall(struct.pack(">I", len(body) + 4) + body)
            assert other.recv(1) == b""

    def encrypt(self) -> Wire:
        """Speak TLS from here on, and believe any certificate. `readable` does not look into it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.send(SSL_REQUEST)
        assert self.sock.recv(1) == b"S"
        self.sock = context.wrap_socket(self.sock, suppress_ragged_eofs=False)
        return self

    def leave(self, how: Literal["fin", "reset"]) -> str:
        """End this side. With ``fin`` what still comes is read to its end, and how that ends is told."""
        if how == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self.sock.close()
            return "left"
        self.sock.shutdown(socket.SHUT_WR)
        return self.ending()

    def ending(self) -> str:
        """Read to the end: "eof" (over TLS: close_notify), "reset", or "torn": TLS without close_notify,
        which Python 3.11 also says of a reset. Raises TimeoutError where the end does not come.
        """
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionError:
            return "reset"
        except ssl.SSLEOFError:
            return "torn"
        return "eof"


def errors(found: list[tuple[int, bytes]]) -> list[str]:
    """The SQLSTATEs of the ErrorResponses in it."""
    return [
        next(part[1:].decode() for part in body.split(b"\0") if part[:1] == b"C")
        for kind, body in found
        if kind == Back.ERROR
    ]


def execution(name: str, text: str, *values: bytes) -> bytes:
    """Parse, Bind and Execute of a named statement, without a Sync."""
    return b"".join(
        (
            write_parse(Parse(name.encode(), text.encode(), ())),
            write_bind(Bind(b"", name.encode(), (), values, ())),
            write_execute(Execute(b"", 0)),
        )
    )


# -- the phases --------------------------------------------------------------------------------------------


def connected(_: Wire) -> None:
    """Nothing was said."""


def half_started(wire: Wire) -> None:
    wire.send(struct.pack(">II", 60, 3 << 16), b"user\0pos")


def in_tls(wire: Wire) -> None:
    """TLS was agreed, and a part of a ClientHello sent."""
    wire.send(SSL_REQUEST)
    assert wire.sock.recv(1) == b"S"
    wire.send(bytes.fromhex("16030102000100"))


def asked_for_password(wire: Wire) -> None:
    wire.startup()
    wire.until(Back.AUTHENTICATION)


def idle(wire: Wire) -> None:
    wire.login()


def in_transaction(wire: Wire) -> None:
    wire.login()
    wire.ask("BEGIN")
    wire.ask("UPDATE documents SET title = title WHERE id = 1")


def prepared(wire: Wire) -> None:
    """A statement is there, and a portal of it that was not run."""
    wire.login()
    parse = write_parse(Parse(b"s", b"SELECT title FROM documents WHERE id < $1", (23,)))
    wire.send(parse, message(Front.SYNC))
    wire.until(Back.READY_FOR_QUERY)
    wire.send(write_bind(Bind(b"", b"s", (), (b"5",), ())), message(Front.FLUSH))
    wire.until(Back.BIND_COMPLETE)


def in_rows(wire: Wire) -> None:
    wire.login()
    wire.send(write_query(LONG.encode()))
    wire.until(Back.DATA_ROW)


def in_statement(wire: Wire) -> None:
    wire.login()
    wire.send(write_query(f"SELECT pg_sleep(1) {MARK}".encode()))


def in_copy_out(wire: Wire) -> None:
    wire.login()
    wire.send(write_query(f"COPY ({LONG}) TO STDOUT".encode()))
    wire.until(Back.COPY_DATA)


def in_copy_in(wire: Wire) -> None:
    wire.login()
    wire.send(write_query(f"COPY documents (id, title) FROM STDIN {MARK}".encode()))
    wire.until(Back.COPY_IN)
    for number in range(20):
        wire.send(message(Front.COPY_DATA, b"%d\ttitle\n" % (10_000 + number)))


def in_pipeline(wire: Wire) -> None:
    """Statements were run, others wait, and there is no Sync yet."""
    wire.login()
    one = execution("", f"SELECT title {MARK} FROM documents WHERE id = $1", b"7")
    wire.send(one * 20, message(Front.FLUSH))
    wire.until(Back.COMMAND_COMPLETE)
    wire.send(one)


PHASES: Final[dict[str, Callable[[Wire], None]]] = {
    "connected": connected,
    "half-started": half_started,
    "in-tls": in_tls,
    "asked-for-password": asked_for_password,
    "idle": idle,
    "in-transaction": in_transaction,
    "prepared": prepared,
    "in-rows": in_rows,
    "in-statement": in_statement,
    "in-copy-out": in_copy_out,
    "in-copy-in": in_copy_in,
    "in-pipeline": in_pipeline,
}

# SPDX-License-Identifier: Apache-2.0
"""What the agent and its proxy workers say to each other, over one Unix socket.

msgpack, one tagged struct a message. Versioned: a worker of the previous version must still be
understood, so fields are only ever added, with defaults. Descriptors travel beside a message
(``agent/channel.py``); a message that carries one says so in its docstring. No message to the agent
ever holds a client's bytes, no message to a worker ever holds a signing key.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from policy.model import RecordLevel, RecordMode, Subject

MAX_KEPT_SUBJECTS = 1024  # by a worker
VERSION = 1
OLDEST = 1  # the oldest version that is still spoken


class Message(msgspec.Struct, frozen=True, tag_field="type"):
    pass


class Hello(Message, frozen=True, tag="hello"):
    """First message of a worker, also after the agent restarted (then with the stream it has)."""

    version: int
    pid: int
    generation: str
    stream: str | None = None  # None: it needs one
    slot: int = -1  # the slot it had with the agent before


class Listener(Message, frozen=True, tag="listener"):
    """Worker to agent, with one descriptor: its listening socket for a guard."""

    guard: str


class Identify(Message, frozen=True, tag="identify"):
    id: int
    guard: str
    netns: int  # SO_NETNS_COOKIE of the accepted socket; 0: the namespace that is guarded
    client: tuple[str, int]
    server: tuple[str, int]
    sha256: bool = False  # a rule or the record asks for the executable's hash
    accepted: int | None = None  # SO_COOKIE of the accepted socket
    keeps: bool = False  # the answer may give a Subject's number instead of the Subject


class Present(Message, frozen=True, tag="present"):
    """Blocks written since the last signed one: (first seq, frames, SHA-256 of the stored payload)."""

    blocks: tuple[tuple[int, int, bytes], ...]


class NeedSegment(Message, frozen=True, tag="need-segment"):
    """The worker's spare segment is in use now: send another."""


class Counters(Message, frozen=True, tag="counters"):
    """A worker's counters, once a second; all since its start."""

    values: dict[str, int]
    sessions: int


class Ended(Message, frozen=True, tag="ended"):
    """The answer to Kill: whether this worker had that session."""

    session: str
    found: bool


WorkerMessage = Hello | Listener | Identify | Present | NeedSegment | Counters | Ended


class TlsSettings(msgspec.Struct, frozen=True):
    """TLS of one guard: PEM texts, b"" where there is none. Held in memory only."""

    cert: bytes = b""  # what clients are shown: certificate, chain and key
    client_ca: bytes = b""
    client_cert: Literal["none", "request", "require"] = "none"
    server: Literal["off", "require", "verify"] = "off"
    server_ca: bytes = b""
    server_name: str | None = None
    present: bytes = b""  # what the database is shown: certificate, chain and key

    def __repr__(self) -> str:
        """Without the keys."""
        return f"TlsSettings(client_cert={self.client_cert!r}, server={self.server!r})"


class GuardSettings(msgspec.Struct, frozen=True):
    """One guard as a worker needs it."""

    name: str
    index: int
    engine: str
    ports: tuple[int, ...]
    address: str | None
    mode: Literal["observe", "enforce"]
    remote: Literal["pass", "judge", "refuse"]
    off: bool = False
    peers: tuple[tuple[str, int | None], ...] = ()  # (network, guarded port or None for any)
    credential: tuple[tuple[str, str], ...] = ()  # headers to send upstream; held in memory only
    auth: Literal["relay", "identity", "password"] = "relay"  # how clients of a SQL engine are known
    tls: TlsSettings | None = None

    def __repr__(self) -> str:
        """Without the credential: a log or a traceback may show it."""
        return f"GuardSettings({self.name!r}, {self.mode!r})"


class Settings(msgspec.Struct, frozen=True):
    max_body: int
    max_connections: int
    max_connections_per_subject: int
    first_request: float
    drain: float
    mode: RecordMode
    level: RecordLevel
    max_held: int = 512 * 2**20  # last, so that an agent of the version before may leave it out


class Snapshot(Message, frozen=True, tag="snapshot"):
    """All that a worker decides by. Replaces the one before as a whole."""

    version: str  # changes with every change of content
    guards: tuple[GuardSettings, ...]
    policy: bytes  # the validated rules (policy.document), compiled by the worker
    settings: Settings
    hmac_key: bytes

    def __repr__(self) -> str:
        """Without the key."""
        return f"Snapshot({self.version!r}, {self.guards!r})"


class Segment(Message, frozen=True, tag="segment"):
    """Agent to worker, with one descriptor: an opened, empty segment of its stream."""

    stream: str
    number: int


class Welcome(Message, frozen=True, tag="welcome"):
    """The answer to Hello; Segment messages and a Snapshot come before it."""

    stream: str
    host: str
    boot: str
    slot: int = -1


class Identified(Message, frozen=True, tag="identified"):
    """Who connected. A worker that `keeps` is sent a Subject once, under a number that may be given another
    one later; from then on the number alone. Numbers are of one connection between agent and worker."""

    id: int
    subject: Subject | None
    number: int = -1


class Signed(Message, frozen=True, tag="signed"):
    """A checkpoint covers the worker's stream up to this frame seq."""

    seq: int


class Pressure(Message, frozen=True, tag="pressure"):
    """How full the evidence disk is: alert, then no bodies are recorded (meta), then nothing (full)."""

    level: Literal["ok", "alert", "meta", "full"]


class Kill(Message, frozen=True, tag="kill"):
    session: str


class Drain(Message, frozen=True, tag="drain"):
    """Take no new connection, finish what is under way for so many seconds, then exit."""

    seconds: float
    keep: float = 0.0  # before that: seconds in which sessions go on as they are, idle ones too


class Adopt(Message, frozen=True, tag="adopt"):
    """Agent to worker, with one descriptor: a connection that waited in the reserve listener."""

    guard: str


class Refused(Message, frozen=True, tag="refused"):
    """The agent does not take this worker (version, user, cgroup). The connection ends."""

    reason: str


AgentMessage = Snapshot | Segment | Welcome | Identified | Signed | Pressure | Kill | Drain | Adopt | Refused

encode = msgspec.msgpack.Encoder().encode
decode_worker = msgspec.msgpack.Decoder(WorkerMessage).decode
decode_agent = msgspec.msgpack.Decoder(AgentMessage).decode

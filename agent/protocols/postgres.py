# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL session in enforce: authentication on both sides, up to the first ReadyForQuery, then queries.

Owns the order of startup after the packet that asks for it (``postgres_opening``) and hands over to the
query phase. Bias: fail closed. The client is told that it is in only when the database let the guard in, and
may ask nothing before the engine has learnt what names mean; what a side may not send is a ProtocolError.
"""

from __future__ import annotations

from typing import Final

from agent.protocols.postgres_auth import AUTHENTICATION_OK, RelayedAuth
from agent.protocols.postgres_forms import read_parameter_status, read_report
from agent.protocols.postgres_messages import (
    HEADER,
    MAX_AUTHENTICATION,
    Back,
    Front,
    Message,
    error_response,
)
from agent.protocols.postgres_opening import Opening, Phase
from agent.protocols.postgres_query import READ_AHEAD, QueryPhase
from agent.protocols.postgres_startup import lower_version
from agent.protocols.postgres_wants import CatalogQuery
from agent.protocols.session import Abort, Output, ProtocolError
from agent.protocols.sql import Conversation

_INVALID_AUTHORIZATION: Final = "28"  # class of SQLSTATEs
_FATAL: Final = ("FATAL", "PANIC")
_GONE: Final = "the database closed the connection before the session began"


class PostgresSession(Opening):
    """`Securing` session of one connection."""

    protocol = "postgres"

    _conversation: Conversation | None = None
    _catalog: CatalogQuery | None = None
    _queries: QueryPhase | None = None
    _ready = b""  # the first ReadyForQuery, withheld
    _versions = False  # what protocol is spoken was said

    # -- Session -----------------------------------------------------------------------------------

    @property
    def is_reading(self) -> bool:
        """Something has begun that a drain waits for: a startup, messages, a transaction."""
        if self._queries is not None:
            return self._queries.is_reading
        return bool(self._prefix) or self._phase not in (Phase.OPENING, Phase.OVER)

    @property
    def is_opening(self) -> bool:
        """The client waits to be let in, and is told where the database is lost meanwhile."""
        quiet = (Phase.OPENING, Phase.CLIENT_TLS, Phase.CANCELLING, Phase.OVER)
        return self._queries is None and self._phase not in quiet

    @property
    def waits(self) -> bool:
        """The client should not be read on until the database has answered."""
        return self._queries.waits if self._queries is not None else self._front.waiting > READ_AHEAD

    def client_data(self, data: bytes) -> Output:
        if self._queries is not None:
            return self._queries.client_data(data)
        out = Output()
        match self._phase:
            case Phase.OPENING | Phase.CLIENT_TLS:
                self._prefix += data
                if len(self._prefix) > MAX_AUTHENTICATION:
                    raise ProtocolError("startup-length", "too many bytes before the session began")
                if self._phase is Phase.OPENING:
                    self._guarded(out, self._read_packets)
            case Phase.CANCELLING | Phase.OVER:
                pass  # nothing may follow a cancel request, and nobody reads it
            case _:
                self._front.feed(data)
                if self._front.waiting > self._bounds.pipelined:
                    raise ProtocolError("pipelined", "too many bytes before the session began")
                self._guarded(out, self._read_client)
        return out

    def server_data(self, data: bytes) -> Output:
        return self._server_begins(data) if self._queries is None else self._queries.server_data(data)

    def _server_begins(self, data: bytes) -> Output:
        out = Output()
        match self._phase:
            case Phase.SERVER_ANSWER:
                self._guarded(out, lambda out: self._take_tls_answer(out, data))
            case Phase.AUTHENTICATION | Phase.PASSWORD | Phase.SETTLING | Phase.LEARNING:
                self._back.feed(data)
                if self._phase is Phase.PASSWORD and self._back.waiting > MAX_AUTHENTICATION:
                    text = "the database says too much before the client is known"
                    raise ProtocolError("early", text, "server")
                self._guarded(out, self._read_server)
            case Phase.OVER:
                pass
            case _:
                text = "the database spoke where it had nothing to answer"
                raise ProtocolError("server-first", text, "server")
        return out

    def client_eof(self) -> Output:
        if self._queries is not None:
            return self._queries.client_eof()
        # Who cancels may close at once: the database still has to read the request.
        return Output() if self._phase is Phase.CANCELLING else Output(close="both")

    def server_eof(self) -> Output:
        if self._queries is not None:
            return self._queries.server_eof()
        if self.is_opening:
            return self._refuse("08006", _GONE)
        out = Output(close="both")
        if self._phase is Phase.CANCELLING:
            self._finish(out, "answered", {})
        return out

    def abandon(self, reason: str) -> Output:
        out = self._queries.abandon(reason) if self._queries is not None else Output()
        if self._open:
            self._open = False
            out.records.insert(0, Abort(1, reason))
        return out

    def refuse_all(self, message: str) -> Output:
        if self._queries is not None:
            out = self._queries.refuse_all(message)
            out.records[:0] = self.abandon(message).records
            return out
        # Before the database has said a word over TLS, what failed is that TLS: it may refuse our certificate
        # after the handshake (TLS 1.3).
        unheard = self._phase is Phase.SERVER_TLS or ("server" in self._tls and not self._versions)
        return self._refuse("08006" if unheard else "08P01", message)

    def _refuse(self, state: str, message: str) -> Output:
        out = Output(close="both")
        if self._phase not in (Phase.CLIENT_TLS, Phase.CANCELLING, Phase.OVER):
            out.to_client.append(error_response(state, message, severity="FATAL"))
        if self._open:
            self._finish(out, "refused", {"sqlstate": state}, message)
        self._phase = Phase.OVER
        return out

    # -- authentication ----------------------------------------------------------------------------

    def _read_client(self, out: Output) -> None:
        """Messages of a client that is not in yet: it may only answer what it was asked."""
        while self._phase in (Phase.AUTHENTICATION, Phase.PASSWORD):
            if self._front.peek() == Front.TERMINATE:
                self._phase, out.close = Phase.OVER, "both"
                return
            relayed = self._upstream if isinstance(self._upstream, RelayedAuth) else None
            if self._client is None and relayed is None:
                return  # it was asked nothing: what it says waits for the query phase
            found = self._front.take()
            if found is None:
                return
            if relayed is not None:
                out.to_server.append(relayed.from_client(found))
            elif self._client is not None and self._phase is Phase.PASSWORD:
                answer, known = self._client.take(found)
                out.to_client.append(answer)
                if known:
                    self._client, self._phase = None, Phase.AUTHENTICATION
                    self._read_server(out)
            else:
                raise ProtocolError("auth-order", "a client message before it was asked for its password")

    def _read_server(self, out: Output) -> None:
        while (kind := self._back.peek()) is not None:
            match self._phase:
                case Phase.AUTHENTICATION:
                    if not self._negotiate(out, kind):
                        return
                case Phase.SETTLING:
                    self._settle(out, self._take())
                case Phase.LEARNING:
                    self._learn(out, self._take())
                case _:
                    break
        if self._phase is Phase.QUERIES:
            self._hand_over(out)

    def _take(self) -> Message:
        found = self._back.take()
        if found is None:
            raise RuntimeError("a message that was there")
        return found

    def _negotiate(self, out: Output, kind: int) -> bool:
        """One message of the database during authentication. False: it has to wait for the client."""
        if not self._versions:
            self._versions = True
            own = self._take().raw[HEADER:] if kind == Back.NEGOTIATE_VERSION else None
            if self._login is not None and (own is not None or self._login.lowered):
                out.to_client.append(lower_version(self._login, own))
            if own is not None:
                return True
        if kind == Back.AUTHENTICATION and self._client is not None:
            out.to_client.append(self._client.ask())
            self._phase = Phase.PASSWORD
            return False
        found = self._take()
        if kind == Back.AUTHENTICATION:
            self._authenticate(out, found)
        elif kind == Back.ERROR:
            self._fail(out, found, custody=not isinstance(self._upstream, RelayedAuth))
        elif kind == Back.NOTICE:
            out.to_client.append(found.raw)
        else:
            self._unexpected(kind)
        return True

    def _authenticate(self, out: Output, found: Message) -> None:
        upstream = self._upstream
        if isinstance(upstream, RelayedAuth):
            passed = upstream.from_server(found)
            if passed is not None:
                out.to_client.append(passed)
                return
        else:
            answer = upstream.take(found)
            if answer is not None:
                out.to_server += [answer] if answer else []
                return
        out.to_client.append(AUTHENTICATION_OK)
        self._phase = Phase.SETTLING
        if self._login is not None:
            self._conversation = self._engine.converse(self._guard, self._login.where)

    def _fail(self, out: Output, found: Message, *, custody: bool) -> None:
        """The database does not let this session begin. What it says of a held credential is not told."""
        fields = read_report(found.raw[HEADER:])
        state = fields.get("C", "")
        head = {"sqlstate": state, "upstream-auth": self._upstream.method}
        if custody and state.startswith(_INVALID_AUTHORIZATION):
            text = "the database did not accept the credential that the guard holds"
            out.to_client.append(error_response("28000", text, severity="FATAL"))
        else:
            out.to_client.append(found.raw)
        self._finish(out, "failed", head, fields.get("M", "the database refused the session"))
        self._phase, out.close = Phase.OVER, "both"

    # -- from AuthenticationOk to the first query --------------------------------------------------

    def _settle(self, out: Output, found: Message) -> None:
        match found.kind:
            case Back.PARAMETER_STATUS:
                self._tell_status(out, found)
            case Back.BACKEND_KEY_DATA | Back.NOTICE | Back.NOTIFICATION:
                out.to_client.append(found.raw)
            case Back.ERROR:
                self._fail(out, found, custody=False)
            case Back.READY_FOR_QUERY:
                self._ready = found.raw
                self._finish(out, "answered", {"upstream-auth": self._upstream.method})
                if self._conversation is None:
                    raise RuntimeError("a session without its conversation")
                self._catalog = CatalogQuery(self._conversation)
                self._ask(out, again=False)
            case _:
                self._unexpected(found.kind)

    def _tell_status(self, out: Output, found: Message) -> None:
        name, value = read_parameter_status(found.raw[HEADER:])
        if self._conversation is not None:
            self._conversation.status(name, value)
        out.to_client.append(found.raw)

    def _ask(self, out: Output, *, again: bool) -> None:
        query = self._catalog.begin(again=again) if self._catalog is not None else None
        if query is None:
            self._phase = Phase.QUERIES
            return
        self._phase = Phase.LEARNING
        out.to_server.append(query)

    def _learn(self, out: Output, found: Message) -> None:
        if found.kind == Back.ERROR and read_report(found.raw[HEADER:]).get("V") in _FATAL:
            out.to_client.append(found.raw)
            self._phase, out.close = Phase.OVER, "both"
            return
        if self._catalog is None:
            raise RuntimeError("an answer to no query")
        match self._catalog.take(found.kind, found.raw):
            case "more":
                pass
            case "pass" if found.kind == Back.PARAMETER_STATUS:
                self._tell_status(out, found)
            case "pass":
                out.to_client.append(found.raw)
            case "I":
                self._ask(out, again=True)
            case _:
                raise ProtocolError("unexpected", "a catalog query left a transaction open", "server")

    def _hand_over(self, out: Output) -> None:
        """The client is in: ReadyForQuery, and what it sent early."""
        login, conversation = self._login, self._conversation
        if login is None or conversation is None:
            raise RuntimeError("a session that nobody asked for")
        out.to_client.append(self._ready)
        self._queries = queries = QueryPhase(
            self._engine, conversation, self._judge, self._guard, login.where, self._bounds, 2
        )
        for data, method in (
            (self._back.rest(), queries.server_data),
            (self._front.rest(), queries.client_data),
        ):
            if data:
                _append(out, method(data))

    def _unexpected(self, kind: int) -> None:
        text = f"the database sent {chr(kind)!r} while the session began"
        raise ProtocolError("unexpected", text, "server")


def _append(out: Output, more: Output) -> None:
    out.to_server += more.to_server
    out.to_client += more.to_client
    out.records += more.records
    out.close = more.close if out.close == "no" else out.close
    out.held = out.held or more.held

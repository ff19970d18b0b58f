# SPDX-License-Identifier: Apache-2.0
"""A guard's TLS settings as OpenSSL contexts: what is spoken, who is trusted, what is shown.

Owns every TLS parameter of ours, for both roles. It reads no file: certificates and keys come as PEM from
the agent, and what OpenSSL takes from a file only goes through a descriptor without a name (memfd_create(2)).
Bias: TLS 1.2 and later, no renegotiation, no compression, no early data; a certificate that was asked for and
does not verify ends the handshake.
"""

from __future__ import annotations

import os
import ssl
from typing import Literal

from msgspec.structs import replace

from agent.messages import GuardSettings, TlsSettings
from agent.protocols.session import TlsTerms
from agent.tls_layer import NameOf, TlsLayer

ALPN = {"pgvector": "postgresql"}  # every other engine speaks HTTP/1.1


class TlsContexts:
    """What `settings` allow. Raises ValueError (ssl.SSLError is one of its causes) where they cannot be."""

    def __init__(self, settings: TlsSettings, engine: str, mode: Literal["observe", "enforce"]) -> None:
        self.made_of = (settings, engine, mode)
        alpn = [ALPN.get(engine, "http/1.1")]
        enforcing = mode == "enforce"
        self._client = _towards_clients(settings, alpn, enforcing) if settings.cert else None
        self._server = self._stranger = None
        if settings.server != "off":
            self._server = self._stranger = _towards_database(settings, alpn)
            if settings.present and not enforcing:
                # Nothing is judged: lent to all, it would let in whom the database does not.
                self._stranger = _towards_database(replace(settings, present=b""), alpn)
        self._name_of: NameOf | None = None
        if settings.client_cert != "none":
            self._name_of = _subject_reader()
        required = enforcing and settings.client_cert == "require"
        self.terms = TlsTerms(
            "no" if self._client is None else "required" if required else "offered",
            self._server is not None,
            settings.present != b"",
        )

    def layer(self, side: Literal["client", "server"], address: str, known: bool = False) -> TlsLayer:
        """`address` is the one the client dialled, for the database's name where none is configured.

        `known`: the client has shown a certificate that verified.
        """
        if side == "client":
            if self._client is None:
                raise RuntimeError("TLS towards a client without a certificate")
            return TlsLayer(self._client, "client", name_of=self._name_of)
        context = self._server if known else self._stranger
        if context is None:
            raise RuntimeError("TLS towards a database that is spoken to without")
        return TlsLayer(context, "server", self.made_of[0].server_name or address)


def make_contexts(guard: GuardSettings, before: TlsContexts | None) -> TlsContexts | None:
    """Of a guard with `tls:`. What has not changed stays, and with it the session tickets it gave out."""
    if guard.tls is None:
        return None
    if before is not None and before.made_of == (guard.tls, guard.engine, guard.mode):
        return before
    return TlsContexts(guard.tls, guard.engine, guard.mode)


def _towards_clients(settings: TlsSettings, alpn: list[str], enforcing: bool) -> ssl.SSLContext:
    context = _bounded(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), alpn)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    _load(context, settings.cert)
    if settings.client_cert != "none":
        # In observe a client without a certificate is not turned away.
        must = settings.client_cert == "require" and enforcing
        context.verify_mode = ssl.CERT_REQUIRED if must else ssl.CERT_OPTIONAL
        _trust(context, settings.client_ca)
    return context


def _towards_database(settings: TlsSettings, alpn: list[str]) -> ssl.SSLContext:
    context = _bounded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), alpn)
    if settings.server == "verify":
        # The configured file may hold the database's own certificate instead of an authority's.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        _trust(context, settings.server_ca)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.present:
        _load(context, settings.present)
    return context


def _bounded(context: ssl.SSLContext, alpn: list[str]) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(alpn)
    return context


def _trust(context: ssl.SSLContext, pem: bytes) -> None:
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise ValueError("no certificates that can be trusted in it") from None


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """Certificate, chain and key. OpenSSL's own reader takes a path: of a file that is nowhere."""
    descriptor = os.memfd_create("vecward-tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        # A password would be asked for on the terminal: there is none.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password=lambda: b"")
    except ssl.SSLError as error:
        raise ValueError(f"certificate and key cannot be used: {error.reason or error}") from None
    finally:
        os.close(descriptor)


def _subject_reader() -> NameOf:
    """Loaded only where client certificates are asked for."""
    from cryptography import x509

    def name_of(certificate: bytes) -> str:
        return x509.load_der_x509_certificate(certificate).subject.rfc4514_string()

    return name_of

# SPDX-License-Identifier: Apache-2.0
"""Guards as a drop-in file, drafted from what was discovered. Pure.

Always in observe. Bias: what cannot be guarded as it is (another network namespace, TLS without a certificate
of ours, Unix sockets) is said in a comment, never left out silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from agent.discover import Database

MAX_PORTS = 16  # of one guard (agent/config.py)
QDRANT_GRPC, QDRANT_PEERS = 6334, 6335


def guard_name(one: Database) -> str:
    return f"{one.answer.engine}-{one.port}"


def drafts(found: Sequence[Database]) -> list[Database]:
    """Those that a guard can be drafted for: in this namespace, not guarded yet."""
    return [one for one in found if one.here and one.guard is None]


def file_name(one: Database) -> str:
    return f"discovered-{guard_name(one)}.yaml"


def draft(one: Database, found: Sequence[Database] = ()) -> str:
    """The text of one drop-in. `found`: all of them, for databases that share a port."""
    ports = ", ".join(map(str, guard_ports(one)))
    lines = ["# Drafted by `vecward discover --write`. Yours to change: it is not written again."]
    lines += [f"# {line}" for line in facts(one)]
    lines += [
        "guards:",
        f"  - name: {guard_name(one)}",
        f"    engine: {one.answer.engine}",
        f"    ports: [{ports}]",
    ]
    shared = [other for other in found if other.here and other is not one and other.port == one.port]
    if shared and len(one.addresses) == 1:
        lines.append(f'    address: "{one.addresses[0]}"')
    lines.append("    mode: observe")
    return "\n".join([*lines, *peers(one)]) + "\n"


def guard_ports(one: Database) -> tuple[int, ...]:
    """Every port by which clients can reach it: for Qdrant also gRPC, the peers' and others of it."""
    side = one.side_ports if one.answer.engine == "qdrant" else ()
    return (one.port, *side)[:MAX_PORTS]


def peers(one: Database) -> Iterator[str]:
    """Hosts that are connected to the cluster's port now."""
    seen = sorted({address for address, port in one.listener.callers if port == QDRANT_PEERS})
    if one.answer.engine == "qdrant" and seen:
        yield "    # connected to the cluster's port; `policy learn` proposes tunnels for listed peers"
        items = ", ".join(f"{{remote: {_quoted(a)}, port: {QDRANT_PEERS}}}" for a in seen[:256])
        yield f"    # peers: [{items}]"


def _quoted(address: str) -> str:
    return f'"{address}"' if ":" in address else address


def facts(one: Database) -> list[str]:
    """What is known of it, and what this guard will not cover; one line each."""
    who = one.listener
    where = f", unit {who.unit}" if who.unit else ""
    where = f", container {who.container[:12]}" if who.container else where
    what = f"{one.answer.engine} {one.answer.version or '(version not told)'}"
    on = ", ".join(_place(address, one.port) for address in one.addresses)
    auth, tls = one.answer.auth or "not learnt", "yes" if one.answer.tls else "no"
    lines = [
        f"{what}: pid {who.pid} ({_plain(who.program)}), user {_plain(who.user)}{_plain(where)}",
        f"listens on {on}; authentication: {auth}; TLS: {tls}",
    ]
    if one.answer.note:
        lines.append(one.answer.note)
    return lines + list(warnings(one))


def warnings(one: Database) -> Iterator[str]:
    who, engine = one.listener, one.answer.engine
    if not one.here:
        yield "in another network namespace: run vecward there, this build guards its own only"
    if one.open_to_hosts:
        yield "open to other hosts: in observe they pass unjudged (`remote:`)"
    if one.answer.auth == "none" or (one.answer.auth or "").startswith("none "):
        yield "asks nobody for a credential: every local process is its administrator until a policy says who"
    if one.answer.tls and engine != "pgvector":
        yield "speaks TLS: unread without `tls:` (docs/howto/tls.md)"
    if one.answer.tls and engine == "pgvector":
        yield "offers TLS: clients that use it are unread without `tls:` (docs/howto/tls.md)"
    if engine == "qdrant" and QDRANT_GRPC in one.side_ports:
        yield f"port {QDRANT_GRPC} is gRPC: unread in observe, refused in enforce"
    if engine != "qdrant" and one.side_ports:
        yield f"its process also listens on {', '.join(map(str, one.side_ports))}: not guarded by this draft"
    sockets = [path for path in who.unix if PurePosixPath(path).name.startswith(".s.PGSQL.")]
    if sockets:
        yield f"Unix sockets are not guarded: {', '.join(map(_plain, sockets))}"


def _place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _plain(value: object) -> str:
    """A stranger's text on one line."""
    return "".join(c if c.isprintable() else "?" for c in str(value))[:200]

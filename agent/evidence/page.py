# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - markup is read line by line
"""One session as a page: opened, read and printed by an investigator, years later, on any machine.

Self-contained: no script, no external resource, and a policy in the page that forbids both. Everything that
comes from evidence goes through `_e`, which makes control characters visible and escapes the rest. Made in
pieces, so that a long session need not fit into memory.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from agent.evidence.replay import Hit, hits
from agent.evidence.style import STYLE
from agent.evidence.views import Exchange, Message, Session, stamp
from agent.evidence.wire import answer_lines, request_lines

MAX_BODY = 64 * 1024  # characters of one body on the page; the JSON lines have it whole
MAX_TICKS = 2000  # marks in the timeline
MAX_ROWS = 200  # hits of one answer on the page


@dataclass(frozen=True, slots=True)
class Proof:
    """What verification said when the page was made. `signed`: seq up to which the stream is signed."""

    status: str  # "whole", "not whole", "not verified"
    lines: tuple[str, ...] = ()
    signed: int | None = None
    head: str | None = None  # chain value that was verified, hex


def session_page(
    session: Session,
    exchanges: Iterable[Exchange],
    total: int,
    proof: Proof,
    made_at: str,
    clean: Cleaner,
    gaps: Iterable[str] = (),
) -> Iterator[str]:
    """The page in pieces. `exchanges` is read once; `total` is how many there are; `made_at` an RFC 3339 time."""
    page = _Page(session, proof, clean)
    yield page.top(made_at)
    yield page.identity()
    yield page.proof(made_at)
    notes = list(gaps)
    if notes:
        yield (
            "<section><h2>Missing</h2><ul>"
            + "".join(f'<li class="bad">{page.e(n)}</li>' for n in notes)
            + "</ul></section>\n"
        )
    yield f"<section><h2>Exchanges <small>{total}</small></h2>\n"
    for exchange in exchanges:
        yield page.exchange(exchange)
    yield f"</section>\n<footer>Made by vecward at {page.e(made_at)} from {page.e(page.origin())}. Times are UTC.</footer>\n</body></html>\n"


def timeline(session: Session, marks: Iterable[tuple[int, int | None, str]]) -> str:
    """A strip with a mark for each exchange: (n, ns since 1970, verdict), each a link to it."""
    known = [m for m in marks if m[1] is not None][:MAX_TICKS]
    if not known:
        return ""
    times = [at for _, at, _ in known if at is not None]
    begin = min([session.started or times[0], *times])
    length = max(1, max([session.ended or times[-1], *times]) - begin)
    ticks = "".join(
        f'<a class="{_class(verdict)}" style="left:{(at - begin) / length * 100:.3f}%" href="#x{n}" title="exchange {n}"></a>'
        for n, at, verdict in known
        if at is not None
    )
    ends = f"<span>{stamp(begin)}</span><span>{stamp(begin + length)}</span>"
    return f'<section><h2>Timeline</h2><div class="strip">{ticks}</div><div class="ends">{ends}</div></section>\n'


class Cleaner(Protocol):
    """How text is made harmless before it is escaped; given by the caller so that pages and screens agree."""

    def __call__(self, value: object, lines: bool = False) -> str: ...


def _class(verdict: str | None) -> str:
    return verdict if verdict in ("allow", "deny", "hold", "tunnel") else "unknown"


class _Page:
    def __init__(self, session: Session, proof: Proof, clean: Cleaner) -> None:
        self.session = session
        self._proof = proof
        self._clean = clean

    def e(self, value: object, lines: bool = False) -> str:
        """Text of strangers, harmless: visible control characters, escaped for text and attributes."""
        return html.escape(self._clean(value, lines), quote=True)

    def origin(self) -> str:
        span = self.session.evidence
        return "evidence" if span is None else f"stream {span.stream}, frames {span.first} to {span.last}"

    def top(self, made_at: str) -> str:
        name = self.e(self.session.session)
        policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        counts = "".join(
            f'<span class="{kind}"><b>{value}</b> {word}</span>'
            for value, word, kind in (
                (self.session.requests, "requests", ""),
                (self.session.allowed, "allowed", "allow"),
                (self.session.denied, "denied", "deny"),
                (self.session.held, "held", "hold"),
                (self.session.masked, "masked", "mask"),
                (self.session.would, "would", "hold"),
                (self.session.rows, "rows", ""),
            )
        )
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
            f'<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer"><title>Session {name}</title>'
            f'<style>{STYLE}</style></head>\n<body><header><h1>Session {name}</h1><p class="counts">{counts}</p></header>\n'
        )

    def identity(self) -> str:
        s = self.session
        origin = " at ".join(
            str(v) for v in ((s.login_from or {}).get("peer"), (s.login_from or {}).get("tty")) if v
        )
        rows = [
            ("User", s.user),
            ("uid / euid / gid", None if s.uid is None else f"{s.uid} / {s.euid} / {s.gid}"),
            ("Groups", ", ".join(s.groups) if s.groups else None),
            ("Login user", s.login_user if s.login_user is not None else s.login_uid),
            ("Logged in from", origin or None),
            ("Audit session", s.audit_session),
            ("Program", s.exe),
            ("Program SHA-256", s.exe_sha256),
            ("Arguments (unattested)", " ".join(s.argv) if s.argv else None),
            ("Script (unattested)", s.beside.get("script")),
            ("Working directory (unattested)", s.beside.get("cwd")),
            ("Process", s.pid),
            ("Calls itself (unattested)", s.comm),
            ("Started by", " < ".join(f"{p['exe'] or '?'} [{p['pid']}]" for p in s.parents) or None),
            ("Unit", s.unit),
            ("User unit", s.user_unit),
            ("Container", s.container),
            ("Image", s.beside.get("image")),
            ("Control group", s.cgroup),
            ("Known by", s.attribution),
            ("Client", s.client),
            ("Server", s.server),
            ("Guard", s.guard),
            ("Engine", s.engine),
            ("Protocol", s.protocol),
            ("TLS subject", s.tls_subject),
            ("Host / boot", f"{s.host} / {s.boot}"),
            ("Started", stamp(s.started)),
            ("Ended", stamp(s.ended) or "not ended"),
        ]
        reasons = "".join(f"<li>{self.e(k)}: {self.e(v)}</li>" for k, v in s.null_reason.items())
        why = f'<p class="label">Not known, and why</p><ul class="why">{reasons}</ul>' if reasons else ""
        return f'<section class="card"><h2>Who</h2>{self.facts(rows)}{why}</section>\n'

    def facts(self, rows: Iterable[tuple[str, object]]) -> str:
        cells = "".join(
            f"<tr><th>{self.e(k)}</th><td>{self.e(v)}</td></tr>" for k, v in rows if v is not None
        )
        return f'<table class="facts">{cells}</table>'

    def proof(self, made_at: str) -> str:
        kind = {"whole": "good", "not whole": "bad"}.get(self._proof.status, "plain")
        lines = "".join(f"<li>{self.e(line)}</li>" for line in self._proof.lines)
        rows = [
            ("Evidence", self.origin()),
            ("Signed up to frame", self._proof.signed),
            ("Chain value there", self._proof.head),
        ]
        return (
            f'<section><h2>Proof</h2><p class="proof {kind}">{self.e(self._proof.status)} <small>as verified at {self.e(made_at)}'
            f"</small></p>{self.facts(rows)}<ul>{lines}</ul></section>\n"
        )

    def exchange(self, x: Exchange) -> str:
        kind = _class(x.verdict)
        would = f' <span class="tag hold">would {self.e(x.would)}</span>' if x.would else ""
        asked = (
            f"{', '.join(x.actions) or 'asked'}{' in ' + ', '.join(x.collections) if x.collections else ''}"
        )
        unknown = x.outcome.startswith("unknown")
        reason = f" ({self.e(x.trace['reason'])})" if x.trace.get("reason") else ""
        return (
            f'<article id="x{x.n}" class="{kind}"><h3><span class="n">{x.n}</span> {self.e(asked)} <span class="tag {kind}">'
            f"{self.e(x.verdict or 'not judged')}</span>{would} <time>{self.e(stamp(x.at) or '?')}</time></h3>\n"
            f'<p class="outcome{" bad" if unknown else ""}">{self.e(x.outcome)}{reason}{f", {x.took * 1e3:.1f} ms" if x.took is not None else ""}</p>\n'
            f"<h4>Asked</h4>{self._asked(x)}{self._body(x.request, 'request')}\n"
            f"<h4>Decided</h4>{self._decided(x)}\n"
            f"<h4>Delivered</h4>{self._masks(x)}{self._hits(hits(x))}{self._delivered(x)}{self._body(x.response, 'answer')}\n"
            f"{self._hashes(x)}</article>\n"
        )

    def _asked(self, x: Exchange) -> str:
        head = [(f"  {name}", value or None) for name, value in x.request.head.items()]
        return self.facts(
            [
                ("Operation", x.method),
                ("Most rows", x.top_k),
                ("Offset", x.offset),
                ("Query vectors", x.queries or None),
                ("Embeddings", "asked for" if x.vectors else None),
                *head,
            ]
        )

    def _decided(self, x: Exchange) -> str:
        trace = x.trace
        rows: list[tuple[str, object]] = [
            ("Verdict", x.verdict),
            ("Rule", x.rule or ("none allows it" if x.verdict else None)),
            ("Stands at", trace.get("where")),
            ("Message", x.message),
        ]
        rows += [
            ("Limit", f"{limit['name']} ≤ {limit['value']}, over: {limit['over']}, by {limit['rule']}")
            for limit in x.limits
        ]
        rows += [("Cut to", f"{c['name']} {c['value']}, by {c['rule']}") for c in trace.get("clamps") or ()]
        if trace.get("vectors") is False:
            rows.append(("Embeddings", f"never leave, by {trace.get('vectors_rule')}"))
        if trace.get("fields") is not None:
            rows.append(("Fields", f"only {', '.join(trace['fields'])}, by {trace.get('fields_rule')}"))
        rows += [("Filter", f"{name} = {value!r}") for name, value in trace.get("filters") or ()]
        near = trace.get("nearest")
        if near:
            rows.append(
                (
                    "Nearest rule",
                    f"{near['rule']}: {near['condition']} wants {near['wanted']}, got {near['got']}",
                )
            )
        rows += [
            (f"In {h['mode']}", f"{h['rule']} would {h['would']}: {h['message']}")
            for h in trace.get("hits") or ()
        ]
        return self.facts([*rows, ("Policy", x.policy)])

    def _masks(self, x: Exchange) -> str:
        if not x.masks:
            return ""
        tags = " ".join(
            f'<span class="tag mask">{m.count}× {self.e(m.what)} ({self.e(m.how)})</span>' for m in x.masks
        )
        return f"<p>Masked: {tags}</p>"

    def _hits(self, found: list[Hit]) -> str:
        if not found:
            return ""
        cells = "".join(
            f'<tr><td>{self.e(h.id)}</td><td class="num">{"" if h.score is None else f"{h.score:.6g}"}</td><td>{self.e(h.payload[:2000])}</td></tr>'
            for h in found[:MAX_ROWS]
        )
        more = f"<p>… {len(found) - MAX_ROWS} more</p>" if len(found) > MAX_ROWS else ""
        return f'<table class="hits"><tr><th>id</th><th class="num">score</th><th>what came with it</th></tr>{cells}</table>{more}'

    def _delivered(self, x: Exchange) -> str:
        ids = ", ".join(x.response.ids[:MAX_ROWS]) + (
            f" … ({len(x.response.ids)})" if len(x.response.ids) > MAX_ROWS else ""
        )
        head = [(f"  {name}", value) for name, value in x.response.head.items()]
        return self.facts([("Status", x.response.status), ("Rows", x.rows), ("Ids", ids or None), *head])

    def _body(self, message: Message, what: str) -> str:
        if not message.body:
            return (
                f'<p class="none">No {what} body is recorded ({message.bytes} bytes passed).</p>'
                if message.bytes
                else ""
            )
        sql = request_lines(message.body) or answer_lines(message.body)
        shown = message.body.decode("utf-8", "replace") if sql is None else "\n".join(sql)
        more = f"<p>… {len(shown) - MAX_BODY} more characters</p>" if len(shown) > MAX_BODY else ""
        cut = (
            f" {message.vectors_cut} vectors are recorded as dimension and digest."
            if message.vectors_cut
            else ""
        )
        return (
            f"<details{' open' if len(shown) <= 4096 else ''}><summary>{what.capitalize()} body, {message.bytes} bytes.{cut}</summary>"
            f"<pre>{self.e(shown[:MAX_BODY], True)}</pre>{more}</details>"
        )

    def _hashes(self, x: Exchange) -> str:
        last = x.result_seq or x.intent_seq
        signed = self._proof.signed
        covered = None if signed is None or last is None else "yes" if last <= signed else "not yet"
        return (
            '<div class="hashes">'
            + self.facts(
                [
                    ("Request SHA-256", x.request.sha256),
                    ("From database SHA-256", x.response.sha256),
                    ("Released SHA-256", x.released_sha256),
                    ("Frames", f"intent {x.intent_seq or '-'}, result {x.result_seq or '-'}"),
                    ("Signed", covered),
                ]
            )
            + "</div>"
        )

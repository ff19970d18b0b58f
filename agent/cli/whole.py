# SPDX-License-Identifier: Apache-2.0
"""One exchange on the screen: what was asked, how it was decided, what was delivered.

Bodies are shown as recorded, bounded, and cleaned line by line; the JSON output has them whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from agent.cli.output import STYLES, clean, facts, heading, size, span, text, utc, verdict_text
from agent.evidence.views import Exchange, Message, Session
from agent.evidence.wire import answer_lines, request_lines

MAX_LINES = 60  # of a body on the screen


def print_exchange(session: Session, exchange: Exchange, screen: Console) -> None:
    """The exchange whole, in the order in which it happened."""
    heading(f"session {session.session} · exchange {exchange.n}", screen)
    screen.print(facts(_summary(session, exchange)))
    _heading("asked", screen)
    screen.print(facts(_asked(exchange)))
    print_body(exchange.request, screen, _absent(exchange, "request"))
    _heading("decided", screen)
    screen.print(facts(decided(exchange)))
    _heading("delivered", screen)
    screen.print(facts(_delivered(exchange)))
    print_body(exchange.response, screen, _absent(exchange, "response"))


def _heading(word: str, screen: Console) -> None:
    screen.print()
    screen.print(Text(word, style="bold cyan"))


def _summary(session: Session, exchange: Exchange) -> Iterable[tuple[str, object]]:
    yield "who", " · ".join(str(p) for p in (session.person, session.exe, session.unit) if p)
    yield (
        "time (UTC)",
        f"{utc(exchange.at, 6)}{f', took {span(exchange.took)}' if exchange.took is not None else ''}",
    )
    outcome = text(
        exchange.outcome,
        STYLES["unknown"] if exchange.outcome.startswith("unknown") else STYLES.get(exchange.outcome, ""),
    )
    if exchange.trace.get("reason"):
        outcome.append_text(text(f" ({exchange.trace['reason']})"))
    yield "outcome", outcome


def _asked(exchange: Exchange) -> Iterable[tuple[str, object]]:
    yield "method", exchange.method or ""
    yield "actions", ", ".join(exchange.actions)
    yield "collections", ", ".join(exchange.collections)
    yield "top_k", exchange.top_k
    yield "offset", exchange.offset
    yield "query vectors", exchange.queries or None
    yield "embeddings", text("asked for", "yellow") if exchange.vectors else None
    for name, value in exchange.request.head.items():
        yield f"  {clean(name)}", value
    yield "body", f"{size(exchange.request.bytes)}, sha256 {exchange.request.sha256 or '-'}"


def decided(exchange: Exchange) -> Iterable[tuple[str, object]]:
    """The verdict and everything it rests on."""
    trace = exchange.trace
    yield "verdict", verdict_text(exchange.verdict, exchange.would)
    yield "rule", _by(exchange.rule or "none allows it", trace.get("where")) if exchange.verdict else None
    yield "message", exchange.message
    for limit in exchange.limits:
        yield "limit", f"{limit['name']} ≤ {limit['value']}, over: {limit['over']}, by {limit['rule']}"
    for clamp in trace.get("clamps") or ():
        yield "cut to", text(f"{clamp['name']} {clamp['value']}, by {clamp['rule']}", "yellow")
    if trace.get("vectors") is False:
        yield "embeddings", f"never leave, by {trace.get('vectors_rule')}"
    if trace.get("fields") is not None:
        yield "fields", f"only {', '.join(trace['fields'])}, by {trace.get('fields_rule')}"
    for name, value in trace.get("filters") or ():
        yield "filter", f"{name} = {value!r}, by {', '.join(trace.get('filter_rules') or ())}"
    for mask in trace.get("masks") or ():
        yield "mask", f"{mask_text(mask)}, by {mask['rule']}"
    near = trace.get("nearest")
    if near:
        yield "nearest", f"{near['rule']}: {near['condition']} wants {near['wanted']}, got {near['got']}"
    for hit in trace.get("hits") or ():
        yield hit["mode"], text(f"{hit['rule']} would {hit['would']}: {hit['message']}", "yellow")
    yield "recorded", f"{trace['level']}, {trace['mode']}" if trace.get("level") else None
    yield "policy", exchange.policy


def mask_text(mask: Mapping[str, Any]) -> str:
    """A mask in force, as a person says it."""
    if mask.get("scores") is not None:
        return f"scores to {mask['scores']} significant digits"
    what = mask.get("field") or ", ".join(mask.get("pii") or ()) or "?"
    return f"{what} as {mask.get('how', 'redact')}"


def _by(rule: str, where: str | None) -> Text:
    made = text(rule, "bold")
    return made.append_text(text(f" ({where})", "dim")) if where else made


def _delivered(exchange: Exchange) -> Iterable[tuple[str, object]]:
    response = exchange.response
    yield "status", response.status
    yield "rows", exchange.rows
    if response.ids:
        shown = ", ".join(response.ids[:20])
        yield "ids", f"{shown} … ({len(response.ids)})" if len(response.ids) > 20 else shown
    for mask in exchange.masks:
        yield "masked", text(f"{mask.count}× {mask.what} ({mask.how})", "magenta")
    for name, value in response.head.items():
        yield f"  {clean(name)}", value
    yield (
        "from database",
        f"{size(response.bytes)}, sha256 {response.sha256 or '-'}"
        if response.sha256 or response.bytes
        else None,
    )
    yield (
        "released",
        f"{size(exchange.trace.get('released_bytes'))}, sha256 {exchange.released_sha256 or '-'}",
    )
    yield (
        "frames",
        f"intent {exchange.intent_seq or '-'}, result {exchange.result_seq or '-'} of {exchange.stream}",
    )


def _absent(exchange: Exchange, side: str) -> str:
    """Why there is no body to show."""
    cut = (exchange.trace.get("cut") or {}).get(side)
    if cut:
        return f"not recorded: {cut}"
    level = exchange.trace.get("level")
    return f"not recorded at level {level}" if level in ("meta", "hashes") else "none recorded"


def print_body(message: Message, screen: Console, absent: str, lines: int = MAX_LINES) -> None:
    """A body as text, JSON indented, at most so many lines."""
    if not message.body:
        screen.print(
            Text(f"  ({absent})" if message.bytes or message.body is None else "  (empty)", style="dim")
        )
        return
    shown = body_lines(message.body)
    for line in shown[:lines]:
        screen.print(Text("  " + line), soft_wrap=True)
    if len(shown) > lines:
        screen.print(Text(f"  … {len(shown) - lines} more lines; --json has it whole", style="dim"))
    if message.vectors_cut:
        screen.print(
            Text(f"  {message.vectors_cut} vectors are recorded as dimension and digest", style="dim")
        )


def body_lines(body: bytes) -> list[str]:
    """The body as lines for people: SQL as statement and tables, JSON indented, other text as it is, the rest
    said to be binary."""
    sql = request_lines(body) or answer_lines(body)
    if sql is not None:
        return [clean(line) for line in sql]
    try:
        plain = msgspec.json.format(body, indent=2) if body[:1] in b"{[" else body
        return [clean(line) for line in plain.decode().splitlines()]
    except (msgspec.DecodeError, RecursionError):
        return [clean(line) for line in body.decode("utf-8", "replace").splitlines()]
    except UnicodeDecodeError:
        return [f"{len(body)} bytes that are not text"]

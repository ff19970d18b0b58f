# SPDX-License-Identifier: Apache-2.0
"""``vecward policy``: check, test, show, explain and learn policy. Reads files; changes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.failure import Code, Fail
from agent.cli.learn import learn
from agent.cli.settings import Settings

if TYPE_CHECKING:
    from agent.evidence.views import Exchange, Session
    from policy.combine import RecordDefaults
    from policy.context import GuardContext
    from policy.document import Document
    from policy.model import Subject
    from policy.operation import Operation


@click.group()
def policy() -> None:
    """Check, test, explain and learn the policy.

    Without FILE the files of the configuration are taken (-c FILE, default /etc/vecward/vecward.yaml).
    """


policy.add_command(learn)
_files = click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))


def _context(settings: Settings) -> GuardContext:
    """The guards of the configuration, or none where there is no configuration."""
    from agent.config import ConfigError, load_config
    from agent.rulebook import guard_context
    from policy.context import GuardContext

    if settings.config is None and not settings.config_file.exists():
        return GuardContext(None, time.time())
    try:
        return guard_context(load_config(settings.config_file), time.time())
    except ConfigError as error:
        raise Fail(
            "\n".join(error.problems),
            "the policy is checked against the guards of the configuration",
            lines=True,
        ) from None


def _defaults(settings: Settings) -> RecordDefaults:
    """What is recorded where no rule says: the configuration's, or the built-in where there is none."""
    from agent.config import load_config
    from policy.combine import RecordDefaults

    if settings.config is None and not settings.config_file.exists():
        return RecordDefaults()
    evidence = load_config(settings.config_file).evidence  # `_context` has read it without a problem
    return RecordDefaults(evidence.level, evidence.mode)


def _load(settings: Settings, files: Sequence[Path]) -> Document:
    from agent.config import ConfigError, load_config, policy_files
    from agent.rulebook import read_files
    from policy.document import load_policy
    from policy.problem import PolicyError

    try:
        paths = _spread(files) or policy_files(load_config(settings.config_file))
        return load_policy(read_files(paths), _context(settings))
    except ConfigError as error:
        raise Fail("\n".join(error.problems), lines=True) from None
    except PolicyError as error:
        raise Fail(str(error), lines=True) from None


def _spread(files: Sequence[Path]) -> list[Path]:
    return [found for path in files for found in (sorted(path.glob("*.yaml")) if path.is_dir() else [path])]


@policy.command()
@_files
@click.pass_obj
def check(settings: Settings, files: tuple[Path, ...]) -> int:
    """Check policy FILEs as the daemon does: every problem with file:line, the text and a hint; exit 1."""
    document = _load(settings, files)
    for warning in document.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(
        f"{len(document.rules)} rules, {len(document.cases)} test cases, policy {document.hash[:12]}: usable"
    )
    return Code.DONE


@policy.command()
@_files
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def test(settings: Settings, files: tuple[Path, ...], as_json: bool) -> int:
    """Run the `tests:` written beside the rules; exit 1 where one fails."""
    from agent.cli.service import print_json
    from policy.cases import run_cases
    from policy.compile import Policy

    document = _load(settings, files)
    context = _context(settings)
    engines = {guard.name: guard.engine for guard in context.guards or ()}
    results = run_cases(Policy(document.rules), document.cases, engines, time.time())
    failed = [result for result in results if not result.passed]
    if as_json or settings.json:
        print_json([{"name": r.name, "where": r.where, "passed": r.passed, "got": r.got} for r in results])
    else:
        for result in failed:
            click.echo(str(result.problem), err=True)
        click.echo(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    return Code.FAILED if failed else Code.DONE


@policy.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(settings: Settings, as_json: bool) -> int:
    """The rules in force in the running agent: hash, files, what the last reload said."""
    from agent.cli.service import ask_agent, print_json

    found = ask_agent(settings, "status")["status"]["policy"]
    if as_json or settings.json:
        print_json(found)
        return Code.DONE
    click.echo(f"policy {found['hash']}: {found['rules']} rules")
    for file in found["files"]:
        click.echo(f"  {file}")
    if found["problem"]:
        click.echo(f"the last reload was refused:\n{found['problem']}", err=True)
    return Code.DONE


@policy.command()
@click.option(
    "--who",
    multiple=True,
    metavar="KEY=VALUE",
    help="A caller: user=app, unit=rag.service, exe=/usr/bin/x ...",
)
@click.option(
    "--what",
    multiple=True,
    metavar="KEY=VALUE",
    help="An operation: guard=docs, action=search, collection=kb ...",
)
@click.option("--pid", type=click.IntRange(1), metavar="N", help="The caller: a living process (needs root).")
@click.option("--session", metavar="ID", help="The caller of a recorded session.")
@click.option("--exchange", type=int, default=1, show_default=True, metavar="N", help="Which exchange of it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.pass_obj
def explain(
    settings: Settings, who: tuple[str, ...], what: tuple[str, ...], pid: int | None, session: str | None,
    exchange: int, as_json: bool,
    files: tuple[Path, ...],
) -> int:  # fmt: skip
    """Why something is or would be allowed or refused: every rule, and where each limit came from.

    With --session a recorded exchange is judged again, by the policy as the files have it now. With --pid the
    caller is a living process, identified as the agent would if it connected now; --what is the operation.
    """
    from agent.cli.service import print_json
    from policy.cases import operation_from, subject_from, with_engine
    from policy.compile import Policy
    from policy.explain import explain as trace
    from policy.problem import PolicyError

    document = _load(settings, files)
    engines = {guard.name: guard.engine for guard in _context(settings).guards or ()}
    if sum((session is not None, pid is not None, bool(who))) > 1:
        raise Fail("--session, --pid and --who all name the caller", "give one of them", Code.USAGE)
    recorded = None
    try:
        if pid is not None:
            operation, database = operation_from(_words(what, "--what"))
            subject = _untold(replace(_living(pid), database=database), with_engine(operation, engines))
        elif session is not None:
            subject, operation, found_exchange = _recorded(settings, session, exchange)
            recorded = recorded_verdict(found_exchange, document.hash)
        elif who or what:
            operation, database = operation_from(_words(what, "--what"))
            subject = replace(subject_from(_words(who, "--who")), database=database)
        else:
            raise Fail("nothing to explain", "give --session ID, or --who or --pid, and --what", Code.USAGE)
    except PolicyError as error:
        raise Fail(str(error), None, Code.USAGE, lines=True) from None
    rules = Policy(document.rules, _defaults(settings))
    found = trace(rules, subject, with_engine(operation, engines), time.time())
    if as_json or settings.json:
        more = {"recorded": recorded} if recorded is not None else {}
        print_json(found.as_dict() | more | (_process_facts(subject) if pid is not None else {}))
    else:
        from agent.cli.output import clean

        told = [] if recorded is None else [_recorded_line(recorded)]
        told += [] if pid is None else _process_lines(subject)
        for line in told + found.lines():
            click.echo(clean(line))
    return Code.DONE


def _words(pairs: Sequence[str], option: str) -> dict[str, str]:
    words = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Fail(f"{option} {pair!r}", f"write {option} key=value", Code.USAGE)
        words[key] = value
    return words


def _untold(subject: Subject, operation: Operation) -> Subject:
    """Of a living process nobody knows yet whom it will name to a database that asks for it."""
    from policy.login import LOGIN_ENGINES
    from policy.rules import LOGIN_KEYS

    if operation.engine not in LOGIN_ENGINES:
        return subject
    unknown = {key for key in LOGIN_KEYS if getattr(subject, key) is None}
    return replace(subject, unobtained=subject.unobtained | unknown)


def _living(pid: int) -> Subject:
    from agent.identity.bypid import identify_process
    from agent.identity.process import ProcessGone

    try:
        return identify_process(pid)
    except ProcessGone as gone:
        hint = f"vecward sessions --pid {pid} lists what it did, policy explain --session explains it"
        raise Fail(f"no process {pid}: {gone}", hint) from None
    except PermissionError:
        raise Fail(f"pid {pid}: not yours to read", "run it with sudo") from None


_SHOWN = (
    "user", "group", "groups", "uid", "login_user", "login_session", "exe", "exe_sha256", "parent_exe",
    "unit", "user_unit", "slice", "container", "image", "cgroup", "argv", "script", "cwd",
)  # fmt: skip


def _process_facts(subject: Subject) -> dict[str, object]:
    """The subject of --pid for JSON: its fields, why others are null, and what only the agent knows."""
    from dataclasses import asdict

    from agent.identity.bypid import NOT_KNOWN

    known = asdict(subject) | {"unobtained": sorted(subject.unobtained)}
    return {"subject": known, "not_known": NOT_KNOWN}


def _process_lines(subject: Subject) -> list[str]:
    from agent.identity.bypid import NOT_KNOWN

    lines = [f"subject: pid {subject.pid} ({subject.comm})"]
    for name in _SHOWN:
        value = getattr(subject, name)
        if isinstance(value, tuple):
            value = (" " if name == "argv" else ", ").join(value)
        if name in subject.unobtained:
            value = f"not obtained: {subject.null_reason.get(name, 'unknown')}"
        if value not in (None, "", False):
            lines.append(f"  {name}: {'yes' if value is True else value}")
    lines.append("not known here:")
    return [*lines, *(f"  {what}: {why}" for what, why in NOT_KNOWN.items())]


def _recorded(settings: Settings, session: str, n: int) -> tuple[Subject, Operation, Exchange]:
    from agent.cli.asking import asking
    from policy.login import recorded_login, with_login

    with asking(settings) as query:
        found = query.session(session)
        exchange = query.exchange(found, n)
        login = recorded_login(exchange.engine, exchange.request.head)
        return with_login(subject_of(found), login), operation_of(exchange), exchange


def subject_of(session: Session) -> Subject:
    """The Subject that a session's card tells of. What the card does not hold counts as not obtained."""
    from policy.model import Attribution, Parent, Subject

    held = {f.name for f in fields(session)} & {f.name for f in fields(Subject)}
    values = {name: getattr(session, name) for name in held - {"parents", "attribution", "null_reason"}}
    made = Subject(Attribution(session.attribution or "unattributed"), **values)
    origin = session.login_from or {}
    beside = session.beside
    if "unobtained" not in beside:  # a card of a writer that did not keep the whole of it
        beside = {
            "remote": session.client_addr if session.attribution == "remote" else None,
            "parent_exe": session.parents[0]["exe"] if session.parents else None,
            "login_session": session.login_uid is not None,
            "unobtained": frozenset({"cwd", "script", "image", "group"}),
            **beside,
        }
    return replace(
        made,
        parents=tuple(Parent(int(p["pid"] or 0), p["exe"]) for p in session.parents),
        login_tty=origin.get("tty"),
        login_peer=origin.get("peer"),
        null_reason=dict(session.null_reason),
        **beside,
    )


def operation_of(exchange: Exchange) -> Operation:
    """The Operation that an exchange was judged as. Raises Fail where the record of it is lost."""
    from policy.model import Action
    from policy.operation import Operation

    if exchange.verdict is None:
        raise Fail(
            f"what exchange {exchange.n} asked for is not in evidence", "vecward verify says what is amiss"
        )
    known = exchange.trace.get("operation", {})
    asked = known.get("fields")
    odd = set(exchange.actions) - set(Action)
    if odd:
        raise Fail(
            f"exchange {exchange.n} was judged as {', '.join(sorted(odd))}, which this build does not know"
        )
    return Operation(
        engine=exchange.engine or "",
        guard=exchange.guard or "",
        method=exchange.method or "",
        actions=frozenset(map(Action, exchange.actions)),
        collections=frozenset(exchange.collections),
        top_k=exchange.top_k,
        offset=exchange.offset,
        vectors=bool(exchange.vectors),
        fields=None if asked is None else frozenset(asked),
        queries=exchange.queries,
        rows=known.get("rows", exchange.rows),
        bytes=known.get("bytes", exchange.request.bytes),
        unbounded=known.get("unbounded", False),
        probed=frozenset(known.get("probed", ())),
        thresholds=known.get("thresholds", False),
        filtered=known.get("filtered", False),
        carries_filter=known.get("carries_filter", False),
        partial=known.get("partial", False),
    )


def recorded_verdict(exchange: Exchange, policy: str) -> dict[str, str | bool | None]:
    """What was decided when it happened, beside what `policy` (a hash) says now."""
    return {
        "verdict": exchange.verdict,
        "would": exchange.would,
        "rule": exchange.rule,
        "message": exchange.message,
        "policy": exchange.policy,
        "same_policy": exchange.policy == policy,
    }


def _recorded_line(known: dict[str, str | bool | None]) -> str:
    would = f" (observed: would {known['would']})" if known["would"] else ""
    under = "this very policy" if known["same_policy"] else f"policy {known['policy']}"
    return f"recorded: {known['verdict']}{would}, rule {known['rule'] or '-'}, by {under}"

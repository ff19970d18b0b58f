# SPDX-License-Identifier: Apache-2.0
"""Counters for Prometheus: names, and the socket that offers them.

Owns the names (docs/metrics.md lists them: a test compares) and a Unix socket that answers every HTTP
request with the text. Serves nothing else and reads at most one request head of 8 KiB.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_HEAD = 8192
_JUDGED = "requests_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

NAMES = {
    "vecward_up": "1 while the agent answers.",
    "vecward_guard_enforcing": "1 where the guard enforces and is not off.",
    "vecward_guard_off": "1 while the guard is off.",
    "vecward_guard_pre_existing": "Connections older than the agent, never judged.",
    "vecward_workers": "Proxy workers connected to the agent.",
    "vecward_sessions": "Client connections open now.",
    "vecward_steering_lost": "Programs of the kernel part that were detached or unpinned behind our back.",
    "vecward_unanswered_total": "Connections that were gone before a worker could ask whose they are.",
    "vecward_kernel_total": "What the kernel part counted, by event.",
    "vecward_proxy_total": "What the workers counted, by event.",
    "vecward_requests_total": "Requests judged, by verdict; would: in observe, other than passed on.",
    "vecward_evidence_key_break": "1 where the signing key that was announced is gone.",
    "vecward_evidence_free_bytes": "Free on the file system of the evidence.",
    "vecward_evidence_unsigned_frames": "Frames written and not yet signed.",
    "vecward_evidence_lost_frames_total": "Frames that could not be written.",
    "vecward_policy_broken": "1 when the last reload was refused.",
}


class _Snapshot(Collector):
    """One status document as metric families."""

    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        status = self._status
        yield _gauge("vecward_up", [((), 1)])
        guards = status["guards"]
        yield _gauge(
            "vecward_guard_enforcing",
            [((g["name"],), g["mode"] == "enforce" and not g["off"]) for g in guards],
            "guard",
        )
        yield _gauge("vecward_guard_off", [((g["name"],), bool(g["off"])) for g in guards], "guard")
        yield _gauge(
            "vecward_guard_pre_existing", [((g["name"],), g["pre_existing"]) for g in guards], "guard"
        )
        yield _gauge("vecward_workers", [((), len(status["workers"]))])
        yield _gauge("vecward_sessions", [((), sum(w["sessions"] for w in status["workers"]))])
        yield _gauge("vecward_steering_lost", [((), len(status["steering_lost"]))])
        yield _counter("vecward_unanswered_total", {"": status["unanswered"]}, label=None)
        yield _counter("vecward_kernel_total", status["kernel"])
        proxy, verdicts = _split(status["proxy"])
        yield _counter("vecward_proxy_total", proxy)
        yield _counter("vecward_requests_total", verdicts, label="verdict")
        yield _gauge("vecward_evidence_key_break", [((), status["evidence"]["key_break"])])
        yield _gauge("vecward_evidence_free_bytes", [((), status["evidence"]["free"])])
        yield _gauge("vecward_evidence_unsigned_frames", [((), status["evidence"]["unsigned"])])
        yield _counter(
            "vecward_evidence_lost_frames_total", {"": status["proxy"].get("evidence_dropped", 0)}, label=None
        )
        yield _gauge("vecward_policy_broken", [((), status["policy"]["problem"] is not None)])


VERDICTS = ("allow", "deny", "tunnel", "would")


def _split(proxy: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """What workers counted, without and with the requests; verdicts are there from the start, for rates."""
    judged = {name.removeprefix(_JUDGED): n for name, n in proxy.items() if name.startswith(_JUDGED)}
    rest = {name: n for name, n in proxy.items() if not name.startswith(_JUDGED)}
    return rest, dict.fromkeys(VERDICTS, 0) | judged


def _gauge(name: str, values: Iterable[tuple[tuple[str, ...], Any]], *labels: str) -> Metric:
    family = GaugeMetricFamily(name, NAMES[name], labels=labels)
    for key, value in values:
        family.add_metric(list(key), float(value))
    return family


def _counter(name: str, values: dict[str, int], label: str | None = "event") -> Metric:
    family = CounterMetricFamily(name, NAMES[name], labels=[label] if label else [])
    for key, value in sorted(values.items()):
        family.add_metric([key] if label else [], float(value))
    return family


def metrics_text(status: dict[str, Any]) -> str:
    """The Prometheus text of one status document (``agent/status.py``)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(status))
    return generate_latest(registry).decode()


class MetricsServer:
    """Answers on ``unix:PATH``; does nothing when `listen` is None."""

    def __init__(self, listen: str | None, text: Callable[[], str]) -> None:
        self._path = None if listen is None else Path(listen.removeprefix("unix:"))
        self._text = text
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        if self._path is None:
            return
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, os.fspath(self._path), limit=MAX_HEAD)
        self._path.chmod(0o660)

    async def close(self) -> None:
        if self._server is not None and self._path is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(10):
                await reader.readuntil(b"\r\n\r\n")
            body = self._text().encode()
            head = (
                f"HTTP/1.1 200 OK\r\ncontent-type: {CONTENT_TYPE}\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a scraper that went away or spoke no HTTP has nothing to be told
        finally:
            writer.close()

# SPDX-License-Identifier: Apache-2.0
"""What the scripts of ordinary use have in common: run a step, write down what came back as text.

Runs in the venvs of the databases' clients, so it imports nothing of this project. What differs from run to
run by nature (UUIDs and times that a server made) is numbered or taken out; everything else is compared.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = re.compile(r'"time": ?[0-9.e-]+|\btime=[0-9.e-]+|b?\'"time":[0-9.e-]+')
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Notebook:
    """``await book.do("step", client.method, argument)`` for sync and async clients alike."""

    def __init__(self) -> None:
        self._pages: list[tuple[str, str]] = []
        self._uuids: dict[str, str] = {}

    async def do(self, step: str, call: Callable[..., Any], /, *given: Any, **named: Any) -> Any:
        """Calls, notes the result or the exception, and returns the result (None after an exception)."""
        try:
            result = await self.call(call, *given, **named)
        except Exception as error:
            kind = f"{type(error).__module__}.{type(error).__qualname__}"
            self._note(step, f"raised {kind}: {self._error(error)}")
            return None
        self._note(step, text(result))
        return result

    async def call(self, call: Callable[..., Any], /, *given: Any, **named: Any) -> Any:
        """The same without a note, for what is different every time."""
        result = call(*given, **named)
        return await result if inspect.isawaitable(result) else result

    def _error(self, error: Exception) -> str:
        status = getattr(error, "status_code", None)
        content = getattr(error, "content", None)
        return f"{status} {content!r} {error}"

    def _note(self, step: str, said: str) -> None:
        said = _ADDRESS.sub("", _TIME.sub("time", said))
        self._pages.append((step, _UUID.sub(self._number, said)))

    def _number(self, found: re.Match[str]) -> str:
        return self._uuids.setdefault(found[0], f"<uuid {len(self._uuids)}>")

    def write(self) -> None:
        """The whole notebook as one JSON document on stdout."""
        print(json.dumps(self._pages))


def text(value: Any) -> str:
    """A value as text that is equal when the value is: keys sorted, arrays with their kind, types named."""
    if hasattr(value, "model_dump"):
        return f"{type(value).__name__}({text(value.model_dump())})"
    if hasattr(value, "tolist"):
        return f"{value.dtype}{value.tolist()!r}" if hasattr(value, "dtype") else repr(value.tolist())
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {text(value[key])}" for key in sorted(value, key=repr)) + "}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}[" + ", ".join(map(text, value)) + "]"
    if type(value).__module__.startswith("chromadb.api.models"):
        said = f"{value.name}, {text(value.metadata)}, {value.id}, {text(value.configuration_json)}"
        return f"{type(value).__name__}({said})"
    return repr(value)

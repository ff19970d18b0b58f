# SPDX-License-Identifier: Apache-2.0
"""Strict JSON bodies: one reading, or none.

Owns the only JSON reader that requests pass. It refuses what two parsers could read differently
(RFC 8259 section 4: duplicate names; escaped names that need no escape; lone surrogates; anything
outside the grammar, NaN included), so that bytes forwarded unchanged mean to the database what was
judged. It must not know any engine's fields. Bias: in doubt it refuses.

Long arrays of plain numbers (vectors) are cut out first, byte by byte, and stand in the tree as
`msgspec.Raw`. Each is replaced by the token ``NaN``, which is not JSON: a body that holds those three
letters anywhere is read whole instead. The decoder reports every such token that stands where a value
may stand, in order, so when it reports as many as were cut, each cut was a value outside any string;
when not (the numbers stood inside a string), the body is read whole. Cut bytes hold number
characters and white space only, so cutting them cannot move a string or an object.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from itertools import accumulate
from typing import Any, Final

import msgspec

from agent.engines.census import MAX_VALUES, STRINGS, has_many_arrays, is_crowded, stand_in
from agent.protocols.http import Refusal

MAX_DEPTH: Final = 64  # of nesting; deeper filters have no use, and servers' own bounds are 128
MAX_BYTES: Final = 64 * 1024 * 1024  # as Bounds.body; a second door
LONG: Final = 96  # bytes from which an array of numbers is cut out unread
DIGEST_MIN: Final = 8  # numbers from which an array counts as a vector in recorded forms
_SHORTEST: Final = 2 * DIGEST_MIN + 1  # bytes of that many

_NUMERIC: Final = b"0123456789+-.eE, \t\r\n"
# What every array of _SHORTEST bytes and more begins with: a search passes over all other brackets at once.
_NUMBERS: Final = re.compile(rb"\[[0-9+\-.eE, \t\r\n]{%d}" % (_SHORTEST - 1))
_BUT_COMMAS: Final = _NUMERIC.replace(b",", b"")
MAX_ESCAPES: Final = 1_000_000  # in names, and in strings with surrogates: each is looked at
_ESCAPE: Final = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
# Possessive: a repeat that could give back would hold 64 bytes of memory for each byte of a string.
_STRING: Final = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"([ \t\r\n]*+:)?', re.DOTALL)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_NEEDLESS: Final = frozenset(range(0x20, 0x7F)) - {0x22, 0x5C}  # code points no encoder must escape
_BRACKETS: Final = bytes(b for b in range(256) if b not in b"[]{}")
_STEP: Final = {0x5B: 1, 0x7B: 1, 0x5D: -1, 0x7D: -1}

Raw = msgspec.Raw
Tree = Any  # dict | list | str | int | bool | None | Raw (a float, or a cut array)


class BodyRefusal(Refusal):
    """The body has more than one reading, or none."""


class Cuts:
    """Arrays of numbers cut out of a body: n + 1 pieces around n cuts, and how many numbers each has."""

    __slots__ = ("cuts", "dims", "pieces")

    def __init__(self, pieces: list[bytes], cuts: list[bytes], dims: list[int]) -> None:
        self.pieces = pieces
        self.cuts = cuts
        self.dims = dims


def cut_arrays(raw: bytes, least: int = LONG) -> Cuts:
    """Innermost arrays of number characters of at least `least` bytes, and what lies between.

    `least` is _SHORTEST or more. Says nothing of whether a cut stands inside a string.
    """
    found = _NUMBERS.search(raw)
    if found is None:
        return Cuts([raw], [], [])
    pieces: list[bytes] = []
    cuts: list[bytes] = []
    dims: list[int] = []
    done = 0
    while found is not None:
        at = found.start()
        end = raw.find(b"]", at)
        if end < 0:
            break
        if end - at >= least:
            start = raw.rfind(b"[", at, end)
            if end - start >= least and raw[start + 1] in _NUMERIC:
                inner = raw[start : end + 1]
                # One pass tells that there is nothing but numbers, and how many.
                commas = inner.translate(None, _BUT_COMMAS)
                dim = len(commas) - 1
                if commas == b"[" + b"," * (dim - 1) + b"]":
                    pieces.append(raw[done:start])
                    cuts.append(inner)
                    dims.append(dim)
                    done = end + 1
        found = _NUMBERS.search(raw, end)
    pieces.append(raw[done:])
    return Cuts(pieces, cuts, dims)


def _whole(raw: bytes) -> Cuts:
    return Cuts([raw], [], [])


class StrictReader:
    """Decodes one body at a time; not for threads (a worker has one)."""

    def __init__(self) -> None:
        self._cuts: list[bytes] = []
        self._next = 0
        self._raw: bytes | None = None  # the body that `skeleton` or `read` cut last
        self._split = Cuts([], [], [])
        self._skeleton = b""
        self._proven = False  # its cuts stand outside any string
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_float=_number
        )

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            name = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
            raise BodyRefusal("duplicate-key", f"the JSON body names {name[:80]!r} twice in one object")
        return made

    def _constant(self, name: str) -> Raw:
        at = self._next
        if name != "NaN" or at >= len(self._cuts):
            raise BodyRefusal("bad-json", f"{name} is not JSON")
        self._next = at + 1
        return Raw(self._cuts[at])

    def skeleton(self, raw: bytes) -> tuple[bytes, int]:
        """The body with each cut array as ``NaN``, and how many were cut (0: it is `raw` itself).

        Two bodies with the same answer here are read alike, but for the numbers in the arrays; nothing
        is proven of either before `read`. Raises BodyRefusal.
        """
        if len(raw) > MAX_BYTES:
            raise BodyRefusal("body-too-large", f"the JSON body is over {MAX_BYTES} bytes")
        if raw is not self._raw:
            split = cut_arrays(raw) if len(raw) >= LONG and not has_many_arrays(raw) else _whole(raw)
            if split.cuts and b"NaN" in b"|".join(split.pieces):  # no cut can hold it
                split = _whole(raw)
            self._split = split
            self._raw = raw
            self._skeleton = b"NaN".join(split.pieces) if split.cuts else raw
            self._proven = False
        return self._skeleton, len(self._split.cuts)

    def read(self, raw: bytes) -> Tree:
        """The tree of a body. Raises BodyRefusal; never anything else."""
        skeleton, count = self.skeleton(raw)
        if count:
            try:
                tree = self._decode(skeleton, self._split.cuts)
                if self._next == count:
                    self._proven = True
                    return tree
            except _Unread:
                pass  # perhaps numbers inside a string: the whole body decides
        try:
            return self._decode(raw, [])
        except _Unread as error:
            raise BodyRefusal("bad-json", f"the body is not JSON: {error}") from None

    @property
    def is_proven(self) -> bool:
        """Whether the cuts of the body that was read last stand outside strings."""
        return self._proven

    def prove(self) -> None:
        """The skeleton of the body at hand is one that was read and proven before."""
        self._proven = True

    def digest(self, raw: bytes) -> tuple[bytes, int]:
        """As `digest`; a body that was just read is not searched for its vectors again."""
        split, proven = self._split, self._proven and raw is self._raw
        self._raw = None  # a body is not kept for longer than its request
        if has_many_arrays(raw):
            return stand_in(raw), 0
        if not proven or cut_arrays(self._skeleton, _SHORTEST).cuts:
            return digest(raw)
        done = [split.pieces[0]]
        count = 0
        for cut, dim, piece in zip(split.cuts, split.dims, split.pieces[1:], strict=True):
            count += dim >= DIGEST_MIN
            done += (_digested(cut, dim) if dim >= DIGEST_MIN else cut, piece)
        return b"".join(done), count

    def _decode(self, skeleton: bytes, cuts: list[bytes]) -> Tree:
        self._cuts = cuts
        self._next = 0
        if is_crowded(skeleton):
            message = f"the JSON body has more than {MAX_VALUES} values"
            raise BodyRefusal("too-many-values", message)
        check_depth(skeleton)
        try:
            tree = self._decoder.decode(skeleton.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise _Unread(str(error)[:120]) from None
        finally:
            self._cuts = []
        if b"\\" in skeleton:
            check_escapes(skeleton)
        return tree


class _Unread(Exception):
    """This form of the body does not decode."""


def _number(text: str) -> Raw:
    return Raw(text.encode("ascii"))


def check_depth(raw: bytes) -> None:
    """Refuse nesting over MAX_DEPTH, before any recursive decoder meets it."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    steps = STRINGS.sub(b"", raw).translate(None, _BRACKETS)
    if max(accumulate(map(_STEP.__getitem__, steps)), default=0) > MAX_DEPTH:
        raise BodyRefusal("too-deep", f"the JSON body nests deeper than {MAX_DEPTH}")


def check_escapes(raw: bytes) -> None:
    """Refuse needless escapes in names, and lone surrogates anywhere, of a body that decodes.

    Names that must be escaped (quotes, controls) or that a cautious encoder escapes (not ASCII)
    stay: no structural name of any engine has such a character.
    """
    looked_at = 0
    for match in _STRING.finditer(raw):
        text = match[1]
        if b"\\" not in text:
            continue
        name = match[2] is not None
        if not name and _SURROGATE.search(text) is None:
            continue
        looked_at += text.count(b"\\")
        if looked_at > MAX_ESCAPES:
            message = f"the JSON body has more than {MAX_ESCAPES} escapes that have to be looked at"
            raise BodyRefusal("too-many-escapes", message)
        high = -1  # where a high surrogate wants its other half
        for escape in _ESCAPE.finditer(text):
            code = int(escape[1], 16) if escape[1] else -1
            low = 0xDC00 <= code <= 0xDFFF
            if low != (high == escape.start()) or (high >= 0 and not low):
                raise BodyRefusal("lone-surrogate", "a string in the JSON body has half a surrogate pair")
            high = escape.end() if 0xD800 <= code <= 0xDBFF else -1
            if name and (code in _NEEDLESS or escape[0] == b"\\/"):
                raise BodyRefusal("escaped-key", "a name in the JSON body hides behind a needless escape")
        if high >= 0:
            raise BodyRefusal("lone-surrogate", "a string in the JSON body has half a surrogate pair")


def write(tree: Tree) -> bytes:
    """The one normal form of a tree. Numbers keep the text they came with."""
    try:
        return msgspec.json.encode(tree)
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError) as error:
        raise BodyRefusal("bad-json", f"the body cannot be written again: {str(error)[:80]}") from None


def whole(value: Tree, name: str, default: int | None = None) -> int | None:
    """A count: a JSON integer of 0 or more, or absent/null. Anything else is refused, not guessed."""
    if value is None:
        return default
    if value.__class__ is not int or value < 0:
        raise BodyRefusal("bad-number", f"{name} must be a whole number of 0 or more")
    return value


def is_array(value: Tree) -> bool:
    """An array, read or cut."""
    return value.__class__ is list or (value.__class__ is Raw and bytes(value)[:1] == b"[")


def is_vector(value: Tree) -> bool:
    """A flat array of numbers, read or cut."""
    if value.__class__ is list:
        return all(v.__class__ is int or (v.__class__ is Raw and bytes(v)[:1] != b"[") for v in value)
    return value.__class__ is Raw and bytes(value)[:1] == b"["


_floats: Final = msgspec.json.Decoder(list[float])


def norm(vector: Tree) -> float | None:
    """The length of a query vector; None where it is none."""
    if not is_vector(vector):
        return None
    try:
        written = vector
        if vector.__class__ is not Raw:
            written = write(vector)
        return math.hypot(*_floats.decode(written))
    except (msgspec.DecodeError, ValueError, OverflowError):
        return None


def digest(raw: bytes) -> tuple[bytes, int]:
    """A recorded form: each vector outside strings as ``{"dim":N,"sha256":"..."}``, and how many.

    For bytes of any origin: where the quotes do not add up nothing is cut after that place. A body of more
    arrays than are looked at has a `stand_in`.
    """
    if has_many_arrays(raw):
        return stand_in(raw), 0
    split = cut_arrays(raw, _SHORTEST)
    if not split.cuts:
        return raw, 0
    done: list[bytes] = []
    count = 0
    inside = False
    for piece, cut, dim in zip(split.pieces, [*split.cuts, b""], [*split.dims, 0], strict=True):
        # Unescaped quotes tell; cuts hold none, and an escape cannot straddle one (a backslash before
        # ``[`` is no JSON).
        plain = _ESCAPE.sub(b"", piece) if b"\\" in piece else piece
        inside ^= bool(plain.count(b'"') & 1)
        vector = dim >= DIGEST_MIN and not inside
        count += vector
        done += (piece, _digested(cut, dim) if vector else cut)
    return b"".join(done), count


def _digested(cut: bytes, dim: int) -> bytes:
    return b'{"dim":%d,"sha256":"%s"}' % (dim, hashlib.sha256(cut).hexdigest().encode())

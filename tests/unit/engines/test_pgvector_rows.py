# SPDX-License-Identifier: Apache-2.0
"""Rows of a result under a verdict: text and binary, DataRow and COPY."""

from __future__ import annotations

import hashlib
from struct import error, pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import pgvector_values as values
from agent.engines.pgvector_plan import make_plan
from agent.engines.sql_parse import parse
from agent.engines.sql_tree import Attribute, Origin, Output, Relation, Resolved, Statement
from agent.protocols.http import Refusal
from agent.protocols.session import Masked
from agent.protocols.sql import Column
from agent.protocols.sql_made import Released
from policy.mask import token
from policy.model import Action, Mask, Verdict

KEY = b"k" * 32
VECTOR, HALFVEC, SPARSEVEC = 90001, 90002, 90003
KINDS: dict[int, Any] = {VECTOR: "vector", HALFVEC: "halfvec", SPARSEVEC: "sparsevec"}
DOCS = Relation(
    16384,
    "public",
    "docs",
    "r",
    "docs",
    (
        Attribute("id", 1, values.INT4),
        Attribute("tenant", 2, values.TEXT),
        Attribute("title", 3, values.TEXT),
        Attribute("email", 4, values.VARCHAR),
        Attribute("salary", 5, values.INT4),
        Attribute("meta", 6, values.JSONB),
        Attribute("embedding", 7, VECTOR, "vector"),
    ),
    frozenset({1}),
)
BY_NAME = {one.name: one for one in DOCS.columns}


def verdict(**changes: Any) -> Verdict:
    return Verdict("allow", "r", None, "", "hash", **changes)


def column(name: str, binary: bool = False, kind: int | None = None) -> Column:
    one = BY_NAME.get(name)
    if one is None:
        return Column(name, 0, 0, kind or values.TEXT, -1, -1, 1 if binary else 0)
    return Column(name, DOCS.oid, one.number, kind or one.type, -1, -1, 1 if binary else 0)


def output(name: str) -> Output:
    one = BY_NAME[name]
    return Output(name, frozenset({Origin(DOCS.oid, one.number, name, one.vector is not None)}), None)


def resolved(text: str = "SELECT 1", outputs: tuple[Output, ...] | None = None) -> Resolved:
    statement = Statement(
        text.split()[0].upper(),
        ("stmts", 0, "stmt"),
        (0, len(text)),
        frozenset({Action.READ}),
        outputs=outputs,
        relations=frozenset({DOCS}),
    )
    return Resolved(text, parse(text), (statement,))


def row(*cells: bytes | None) -> bytes:
    body = pack("!H", len(cells)) + b"".join(
        pack("!i", -1) if cell is None else pack("!i", len(cell)) + cell for cell in cells
    )
    return b"D" + pack("!i", len(body) + 4) + body


def copied(*lines: bytes) -> bytes:
    return b"".join(b"d" + pack("!i", len(line) + 4) + line for line in lines)


def release(
    columns: list[Column], run: bytes, outputs: tuple[Output, ...] | None = None, **changes: Any
) -> Any:
    return make_plan(resolved(outputs=outputs), 0, columns, verdict(**changes), KINDS, KEY).release(run)


def digest(dim: int, value: bytes) -> bytes:
    return b'{"dim":%d,"sha256":"%s"}' % (dim, hashlib.sha256(value).hexdigest().encode())


def test_rows_that_nothing_is_done_to_are_the_object_that_came() -> None:
    run = row(b"a", b"b") * 3
    made = release([column("title"), column("tenant")], run)
    assert made.released is run
    assert made.recorded is run
    assert made.rows == -1


def test_vectors_are_digested_in_the_record_and_released_as_they_are() -> None:
    text = b"[1,2,3]"
    binary = pack("!HHfff", 3, 0, 1, 2, 3)
    run = row(b"7", text, binary)
    made = release([column("id"), column("embedding"), column("embedding", binary=True)], run)
    assert made.released is run
    assert made.recorded == row(b"7", digest(3, text), digest(3, binary))
    assert (made.rows, made.ids, made.vectors_cut, made.masks) == (1, ("7",), 2, ())


@pytest.mark.parametrize(
    ("kind", "binary", "value", "dim"),
    [
        (VECTOR, False, b"[1,2,3]", 3),
        (VECTOR, True, pack("!HHff", 2, 0, 1, 2), 2),
        (HALFVEC, True, pack("!HHee", 2, 0, 1, 2), 2),
        (SPARSEVEC, False, b"{1:2,9:1.5}/400", 400),
        (SPARSEVEC, True, pack("!iiiif", 400, 1, 0, 3, 2.5), 400),
        (values.FLOAT4_ARRAY, False, b"{1,2,3,4}", 4),
        (values.FLOAT8_ARRAY, True, pack("!iiIiiidid", 1, 0, 701, 2, 1, 8, 1, 8, 2), 2),
        (VECTOR, False, b'{"[1,2]","[3,4]"}', 4),
        (VECTOR, True, pack("!iiIii", 1, 0, VECTOR, 2, 1) + b"\0" * 8, 2),
    ],
)
def test_the_dimension_of_a_vector_is_read_in_every_form(
    kind: int, binary: bool, value: bytes, dim: int
) -> None:
    made = release([column("v", binary, kind)], row(value))
    assert made.recorded == row(digest(dim, value))


def test_at_level_full_the_record_is_what_was_released() -> None:
    run = row(b"[1,2,3]")
    made = release([column("embedding")], run, level="full")
    assert made.recorded is run


def test_a_raw_vector_becomes_null_by_its_type_alone_where_vectors_stay() -> None:
    run = row(b"[1,2,3]", b"t") + row(None, b"u")
    made = release([column("x", kind=VECTOR), column("title")], run, vectors=False)
    assert made.released == row(None, b"t") + row(None, b"u")
    assert made.recorded == made.released
    assert made.masks == (Masked("vectors", "drop", 1),)
    assert made.rows == 2


def test_floats_in_an_array_are_taken_for_a_vector() -> None:
    made = release([column("x", kind=values.FLOAT4_ARRAY)], row(b"{1,2}"), vectors=False)
    assert made.released == row(None)


@pytest.mark.parametrize(
    ("how", "text", "wanted"),
    [
        ("redact", b"ann@example.org", b"[redacted]"),
        ("partial", b"ann@example.org", b"***.org"),
        ("partial", b"short", b"***"),
        ("hmac", b"ann@example.org", token("ann@example.org", KEY).encode()),
        ("null", b"ann@example.org", None),
        ("drop", b"ann@example.org", None),
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_a_masked_column_is_known_by_where_it_comes_from(
    how: Any, text: bytes, wanted: bytes | None, binary: bool
) -> None:
    masks = (Mask("r", field="docs.email", how=how),)
    made = release([column("id"), column("email", binary)], row(b"1", text), masks=masks)
    assert made.released == row(b"1", wanted)
    assert made.masks == (Masked("docs.email", how, 1),)
    assert made.ids == ("1",)


def test_what_the_masks_word_does_not_fit_becomes_null() -> None:
    masks = (Mask("r", field="salary", how="redact"), Mask("r", field="meta", how="hmac"))
    made = release([column("salary"), column("meta")], row(b"500", b'{"a":1}'), masks=masks)
    assert made.released == row(None, None)


@pytest.mark.parametrize("name", ["email", "docs.email", "public.docs.email", "*.email"])
def test_a_column_is_named_alone_or_with_its_table_and_schema(name: str) -> None:
    made = release([column("email")], row(b"x"), masks=(Mask("r", field=name),))
    assert made.released == row(b"[redacted]")


@pytest.mark.parametrize("name", ["other.email", "app.docs.email", "docs", "public.docs"])
def test_a_field_of_another_table_hides_nothing_here(name: str) -> None:
    run = row(b"x")
    assert release([column("email")], run, masks=(Mask("r", field=name),)).released is run


def test_a_key_inside_of_a_column_hides_the_column_whole() -> None:
    made = release([column("meta")], row(b'{"ssn":1}'), masks=(Mask("r", field="meta.ssn"),))
    assert made.released == row(None)


def test_columns_outside_of_fields_are_null() -> None:
    made = release([column("id"), column("title")], row(b"1", b"t"), fields=frozenset({"id"}))
    assert made.released == row(b"1", None)
    assert made.masks == (Masked("fields", "drop", 1),)


def test_what_the_database_left_out_already_is_counted_by_rows() -> None:
    run = row(b"[redacted]") * 3
    made = release(
        [Column("email", 0, 0, values.VARCHAR, -1, -1, 0)],
        run,
        (output("email"),),
        masks=(Mask("r", field="email"),),
    )
    assert made.released is run
    assert (made.rows, made.masks) == (3, (Masked("email", "redact", 3),))


@pytest.mark.parametrize("binary", [False, True])
def test_personal_data_is_found_in_texts(binary: bool) -> None:
    masks = (Mask("r", pii=("email",)),)
    made = release([column("title", binary)], row(b"write to ann@example.org now"), masks=masks)
    assert made.released == row(b"write to [email] now")
    assert made.masks == (Masked("pii:email", "redact", 1),)


@pytest.mark.parametrize(("prefix", "binary"), [(b"", False), (b"\x01", True)])
def test_personal_data_is_found_in_jsonb(prefix: bytes, binary: bool) -> None:
    masks = (Mask("r", pii=("email",)),)
    made = release([column("meta", binary)], row(prefix + b'{"a":"x@y.org \\u0041","b":1}'), masks=masks)
    assert made.released == row(prefix + b'{"a":"[email] A","b":1}')


def test_personal_data_in_a_number_or_an_array_takes_the_value_whole() -> None:
    masks = (Mask("r", pii=("email", "credit_card")),)
    columns = [column("n", kind=values.INT8), column("n", True, values.INT8), column("a", kind=1009)]
    card = 4111111111111111
    made = release(columns, row(str(card).encode(), pack("!q", card), b"{x,a@b.org}"), masks=masks)
    assert made.released == row(None, None, None)


def test_a_row_outside_of_the_filter_is_not_released() -> None:
    columns = [column("id"), column("tenant")]
    filters = (("tenant", "acme"),)
    assert release(columns, row(b"1", b"acme") + row(b"2", None), filters=filters).rows == 2
    with pytest.raises(Refusal) as caught:
        release(columns, row(b"1", b"acme") + row(b"2", b"other"), filters=filters)
    assert caught.value.reason == "filter-broken"


def test_ids_are_read_in_binary_format_too() -> None:
    made = release([column("id", True), column("title")], row(pack("!i", -5), b"x") * 2)
    assert made.ids == ("-5", "-5")
    assert made.rows == 2


@pytest.mark.parametrize(
    "run",
    [
        row(b"1"),
        row(b"1", b"2", b"3"),
        row(b"1", b"2")[:-1],
        b"C" + row(b"1", b"2")[1:],
        b"D" + pack("!i", 14) + pack("!H", 2) + pack("!i", 1) + b"1" + pack("!i", 99),
    ],
)
def test_rows_that_are_not_as_announced_are_not_released(run: bytes) -> None:
    with pytest.raises(Refusal):
        release([column("id"), column("title")], run, masks=(Mask("r", field="title"),))


def told(made: Released) -> Any:
    return made.released, made.recorded, made.rows, made.ids, made.vectors_cut, made.masks


def walk(plan: Any, run: bytes) -> Any:
    try:
        return told(plan._walk(run))
    except (IndexError, error):
        return "refused"


def keys(plan: Any, run: bytes) -> Any:
    try:
        return told(plan._read_keys(run))
    except (IndexError, error):
        return "refused"


@given(st.data())
def test_a_run_of_which_keys_alone_are_read_is_told_as_one_that_is_walked(data: st.DataObject) -> None:
    cell = st.none() | st.binary(max_size=5)
    width = data.draw(st.integers(1, 3))
    run = b"".join(
        row(*cells) for cells in data.draw(st.lists(st.lists(cell, min_size=1, max_size=3), max_size=4))
    )
    if run and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(run) - 1))
        run = run[:at] + data.draw(st.binary(max_size=6)) + run[at + data.draw(st.integers(0, 6)) :]
    names = ["title", "id", "tenant"][:width] if width > 1 else ["id"]
    plan = make_plan(resolved(), 0, [column(name) for name in names], verdict(), KINDS, KEY)
    assert plan._keys_alone  # type: ignore[attr-defined]
    assert keys(plan, run) == walk(plan, run)


NUMERICS = [(b"\0\x02\0\0\0\0\0\x02\0\x0c\x0d\x48", "12.34"), (b"\0\x01\0\0\x40\0\0\0\0\x05", "-5")]


@pytest.mark.parametrize(
    ("value", "text"), [*NUMERICS, (b"\0\0\0\0\xc0\0\0\0", "NaN"), (b"\0\x01\0\x01\0\0\0\0\0\x07", "70000")]
)
def test_a_binary_numeric_reads_as_the_database_writes_it(value: bytes, text: str) -> None:
    assert values.text_of(values.NUMERIC, value, True) == text


# COPY


def copy_plan(text: str, outputs: tuple[Output, ...], **changes: Any) -> Any:
    return make_plan(resolved(text, outputs), 0, None, verdict(**changes), KINDS, KEY)


COPIED = (output("id"), output("title"), output("embedding"))
PII = (Mask("r", pii=("email",)),)


@pytest.mark.parametrize(
    ("options", "rows", "wanted"),
    [
        (
            "",
            (b"1\ta@b.org\\n\\tx\t[1,2]\n", b"2\t\\N\t\\N\n"),
            (b"1\t[email]\\n\\tx\t[1,2]\n", b"2\t\\N\t\\N\n"),
        ),
        (
            "(FORMAT csv, HEADER)",
            (b"id,title,embedding\n", b'1,"say ""hi"" to\na@b.org","[1,2]"\n', b"2,,\n"),
            (b"id,title,embedding\n", b'1,"say ""hi"" to\n[email]","[1,2]"\n', b"2,,\n"),
        ),
    ],
)
def test_rows_of_a_copy_are_masked_in_text_and_csv(
    options: str, rows: tuple[bytes, ...], wanted: tuple[bytes, ...]
) -> None:
    plan = copy_plan(f"COPY docs TO STDOUT {options}", COPIED, masks=PII)
    made = plan.release(copied(*rows))
    assert made.released == copied(*wanted)
    assert (made.rows, made.ids, made.vectors_cut) == (2, ("1", "2"), 1)
    assert b'"dim"' in made.recorded
    assert b"[1,2]" not in made.recorded


def test_rows_of_a_binary_copy_are_masked() -> None:
    def tuple_of(*cells: bytes | None) -> bytes:
        return row(*cells)[5:]

    vector = pack("!HHff", 2, 0, 1, 2)
    head = b"PGCOPY\n\xff\r\n\0" + pack("!ii", 0, 0)
    plan = copy_plan("COPY docs TO STDOUT (FORMAT binary)", COPIED, masks=PII)
    first = plan.release(copied(head + tuple_of(pack("!i", 1), b"a@b.org", vector)))
    last = plan.release(copied(tuple_of(pack("!i", 2), b"x", None), b"\xff\xff"))
    assert first.released == copied(head + tuple_of(pack("!i", 1), b"[email]", vector))
    assert first.recorded == copied(head + tuple_of(pack("!i", 1), b"[email]", digest(2, vector)))
    assert (first.ids, last.ids, last.rows) == (("1",), ("2",), 1)


def test_a_copy_of_a_form_that_cannot_be_read_is_refused_only_where_it_must_be_read() -> None:
    text = "COPY docs TO STDOUT (DELIMITER '|')"
    with pytest.raises(Refusal) as caught:
        copy_plan(text, COPIED, masks=PII)
    assert caught.value.reason == "copy-form"
    run = copied(b"1|x|y\n")
    assert copy_plan(text, COPIED).release(run).released is run


@pytest.mark.parametrize("line", [b"1\ta@b.org\n", b"1\ta@b.org\t[1]\tx\n", b"1\ta\t[1]", b"1\ta\t[1]\\\n"])
def test_a_copy_row_that_is_not_whole_is_not_released(line: bytes) -> None:
    with pytest.raises(Refusal):
        copy_plan("COPY docs TO STDOUT", COPIED, masks=PII).release(copied(line))

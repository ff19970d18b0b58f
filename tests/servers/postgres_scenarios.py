# SPDX-License-Identifier: Apache-2.0
"""What clients of PostgreSQL do, as one script: directly and through Vecward it prints the same.

Run by the venv of real clients (tests/servers/requirements-pgvector.txt): ``scenarios.py NAME...``. Prints a
line of JSON for each. Left out is what cannot be equal: process numbers, times, and the database's errors
for names that do not exist (in enforce what names nothing known is refused with 42501 before it is asked).
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import asyncpg
import numpy as np
import psycopg
import sqlalchemy as sa
from pgvector.asyncpg import register_vector as register_asyncpg
from pgvector.psycopg import register_vector

NEAREST = (
    "SELECT id, title, embedding <-> %s::vector FROM documents ORDER BY embedding <-> %s::vector LIMIT 5"
)


def _numbers(vector: Any) -> list[float]:
    array: list[float] = np.asarray(vector.to_numpy() if hasattr(vector, "to_numpy") else vector).tolist()
    return array


def psycopg_sync() -> Any:
    found: list[Any] = []
    with psycopg.connect("") as connection:
        register_vector(connection)
        probe = np.array([1, 2, 3], dtype=np.float32)
        for binary in (False, True):
            cursor = connection.execute(NEAREST, (probe, probe), binary=binary)
            found.append([(row[0], row[1], round(row[2], 4)) for row in cursor])
        row = connection.execute("SELECT embedding FROM documents WHERE id = 7").fetchone()
        found.append(_numbers(row[0]))
        cursor = connection.execute("SELECT * FROM documents LIMIT 0")
        found.append([(c.name, c.type_code) for c in cursor.description])
        for number in range(8):  # prepared from the fifth on
            found.append(
                connection.execute("SELECT title FROM documents WHERE id = %s", (number,)).fetchall()
            )
    return found


def psycopg_transactions() -> Any:
    found: list[Any] = []
    with psycopg.connect("") as connection:
        connection.execute("CREATE TEMP TABLE t (n int PRIMARY KEY)")
        connection.commit()
        for text in (
            "SELECT 1/0",
            "SELECT 'x'::int",
            "INSERT INTO t VALUES (1), (1)",
        ):
            try:
                connection.execute("INSERT INTO t VALUES (9)")
                connection.execute(text)
            except psycopg.Error as error:
                found.append(
                    [error.sqlstate, error.diag.message_primary, connection.info.transaction_status.name]
                )
                try:
                    connection.execute("SELECT 1")
                except psycopg.Error as again:
                    found.append(again.sqlstate)
            connection.rollback()
        with connection.transaction():
            connection.execute("INSERT INTO t VALUES (1)")
            try:
                with connection.transaction():
                    connection.execute("INSERT INTO t VALUES (1)")
            except psycopg.errors.UniqueViolation as error:
                found.append(error.sqlstate)
        found.append(connection.execute("SELECT count(*) FROM t").fetchall())
        found.append(list(connection.execute("SHOW transaction_isolation")))
    return found


def psycopg_copy() -> Any:
    found: list[Any] = []
    with psycopg.connect("") as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE c (id int, name text, embedding vector(3))")
        with cursor.copy("COPY c FROM STDIN") as copy:
            for number in range(1000):
                copy.write_row((number, f"name {number}", f"[{number},1,2]"))
        found.append(cursor.rowcount)
        with cursor.copy("COPY c TO STDOUT") as copy:
            found.append(sum(len(bytes(part)) for part in copy))
        with cursor.copy("COPY (SELECT id, name FROM c WHERE id < 3) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            found.append(list(copy.rows()))
        with cursor.copy("COPY c (id, name) FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            copy.write_row((2000, "binary"))
        found.append(cursor.execute("SELECT count(*), max(id) FROM c").fetchall())
        connection.commit()
        try:
            with cursor.copy("COPY c FROM STDIN") as copy:
                copy.write("not a number\tx\t[1,2,3]\n")
        except psycopg.Error as error:
            found.append(error.sqlstate)
        connection.rollback()
        try:
            with cursor.copy("COPY c FROM STDIN") as copy:
                copy.write_row((1, "a", "[1,2,3]"))
                raise KeyError("the client gives up")
        except (KeyError, psycopg.Error) as error:
            found.append(type(error).__name__)
        connection.rollback()
        found.append(cursor.execute("SELECT count(*) FROM c").fetchall())
    return found


def psycopg_pipeline() -> Any:
    found: list[Any] = []
    with psycopg.connect("", autocommit=True) as connection:
        with connection.pipeline() as pipeline, connection.cursor() as cursor:
            for number in range(1, 30):
                cursor.execute("SELECT id, title FROM documents WHERE id = %s", (number,))
            pipeline.sync()
            while True:
                found.append(cursor.fetchall())
                if not cursor.nextset():
                    break
        try:
            with connection.pipeline() as pipeline:
                connection.execute("SELECT 1")
                connection.execute("SELECT 1/0")
                connection.execute("SELECT 2")
                pipeline.sync()
        except psycopg.Error as error:
            found.append(error.sqlstate)
        found.append(connection.execute("SELECT 3").fetchall())
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE m (n int, v vector(2))")
            cursor.executemany("INSERT INTO m VALUES (%s, %s)", [(n, f"[{n},0]") for n in range(50)])
            found.append(cursor.rowcount)
            cursor.executemany("SELECT n FROM m WHERE n = %s", [(1,), (2,)], returning=True)
            found.append([cursor.fetchall(), cursor.nextset(), cursor.fetchall()])
    return found


def psycopg_cursors() -> Any:
    found: list[Any] = []
    with psycopg.connect("") as connection:
        with connection.cursor(name="far") as cursor:
            cursor.itersize = 7
            cursor.execute("SELECT id FROM documents ORDER BY id")
            found.append([row[0] for row in cursor][:40])
        with connection.cursor(name="scroll", scrollable=True) as cursor:
            cursor.execute("SELECT id FROM documents ORDER BY id")
            cursor.scroll(100)
            found.append(cursor.fetchmany(3))
            cursor.scroll(-5)
            found.append(cursor.fetchone())
        with connection.cursor() as cursor:
            found.append([row[0] for row in cursor.stream("SELECT id FROM documents ORDER BY id LIMIT 9")])
        cursor = connection.execute("SELECT 1; SELECT 2; SELECT 'three'")
        while True:
            found.append(cursor.fetchall())
            if not cursor.nextset():
                break
    return found


def psycopg_prepared() -> Any:
    found: list[Any] = []
    with psycopg.connect("", autocommit=True) as connection:
        connection.execute("PREPARE one (bigint) AS SELECT title FROM documents WHERE id = $1")
        found.append(connection.execute("EXECUTE one(5)").fetchall())
        for number in (1, 2):
            found.append(
                connection.execute(
                    "SELECT title FROM documents WHERE id = %s", (number,), prepare=True
                ).fetchall()
            )
        connection.execute("DEALLOCATE ALL")
        connection.execute("SET statement_timeout = '150ms'")
        try:
            connection.execute("SELECT pg_sleep(20)")
        except psycopg.Error as error:
            found.append(error.sqlstate)
        found.append(connection.execute("SELECT 1").fetchall())
    return found


def psycopg_notify() -> Any:
    found: list[Any] = []
    with psycopg.connect("", autocommit=True) as one, psycopg.connect("", autocommit=True) as other:
        one.execute("LISTEN news")
        other.execute("NOTIFY news, 'hello'")
        other.execute("SELECT pg_notify('news', 'again')")
        for note in one.notifies(timeout=60, stop_after=2):
            found.append([note.channel, note.payload])
        notices: list[str] = []
        one.add_notice_handler(lambda diag: notices.append(diag.message_primary or ""))
        one.execute("DROP TABLE IF EXISTS nothing_at_all")
        found.append(notices)
    return found


def psycopg_cancel() -> Any:
    found: list[Any] = []
    for safe in (False, True):
        with psycopg.connect("", autocommit=True) as connection:
            stop = threading.Event()

            def cancel(
                connection: psycopg.Connection[Any] = connection,
                safe: bool = safe,
                stop: threading.Event = stop,
            ) -> None:
                while not stop.wait(0.2):  # until it took: the statement may not have begun
                    connection.cancel_safe() if safe else connection.cancel()

            thread = threading.Thread(target=cancel)
            thread.start()
            try:
                connection.execute("SELECT pg_sleep(120)")
            except psycopg.Error as error:
                found.append(error.sqlstate)
            finally:
                stop.set()
                thread.join()
    return found


async def _psycopg_async() -> Any:
    async with await psycopg.AsyncConnection.connect("", autocommit=True) as connection:
        answers = await asyncio.gather(*(_one(connection, n) for n in range(10)))
        async with connection.pipeline():
            cursors = [await connection.execute("SELECT %s::int + 1", (n,)) for n in range(10)]
            return [answers, [await c.fetchall() for c in cursors]]


async def _one(connection: Any, number: int) -> Any:
    cursor = await connection.execute("SELECT title FROM documents WHERE id = %s", (number,))
    return await cursor.fetchall()


async def _asyncpg() -> Any:
    found: list[Any] = []
    connection = await asyncpg.connect()
    await register_asyncpg(connection)
    rows = await connection.fetch(
        "SELECT id, embedding FROM documents ORDER BY embedding <-> $1 LIMIT 5", np.ones(3)
    )
    found.append([[r["id"], _numbers(r["embedding"])] for r in rows])
    statement = await connection.prepare("SELECT title FROM documents WHERE id = $1")
    found.append([await statement.fetchval(n) for n in range(5)])
    found.append([a.name for a in statement.get_attributes()])
    async with connection.transaction():
        found.append(
            [r[0] async for r in connection.cursor("SELECT id FROM documents ORDER BY id", prefetch=10)][:25]
        )
        cursor = await connection.cursor("SELECT id FROM documents ORDER BY id")
        found.append([r[0] for r in await cursor.fetch(4)])
    await connection.execute("CREATE TEMP TABLE a (n int, t text); SET LOCAL work_mem = '4MB'")
    await connection.execute("INSERT INTO a VALUES (0, 'zero'); INSERT INTO a VALUES (1, 'one')")
    await connection.executemany("INSERT INTO a VALUES ($1, $2)", [(n, str(n)) for n in range(20)])
    await connection.copy_records_to_table("a", records=[(n, "copied") for n in range(30)])
    found.append(await connection.fetchval("SELECT count(*) FROM a"))
    for text in ("SELECT 1/0", "SELECT 'x'::int"):
        try:
            await connection.fetch(text)
        except asyncpg.PostgresError as error:
            found.append(error.sqlstate)
    try:
        await connection.fetch("SELECT pg_sleep(120)", timeout=0.3)
    except TimeoutError:
        found.append("timeout")
    found.append(await connection.fetchval("SELECT 42"))
    await connection.close()
    return found


def sqlalchemy_core() -> Any:
    found: list[Any] = []
    engine = sa.create_engine("postgresql+psycopg://")
    table = sa.Table(
        "documents",
        sa.MetaData(),
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("title", sa.Text),
    )
    with engine.connect() as connection:
        found.append(
            [list(r) for r in connection.execute(sa.select(table).where(table.c.id < 5).order_by(table.c.id))]
        )
        found.append(sorted(sa.inspect(connection).get_table_names()))
        found.append([c["name"] for c in sa.inspect(connection).get_columns("documents")])
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE sa_made (n int)"))
        connection.execute(sa.text("INSERT INTO sa_made VALUES (:n)"), [{"n": n} for n in range(5)])
        found.append(connection.execute(sa.text("SELECT sum(n) FROM sa_made")).scalar_one())
        connection.execute(sa.text("DROP TABLE sa_made"))
    engine.dispose()
    return found


SCENARIOS: dict[str, Callable[[], Any]] = {
    "psycopg": psycopg_sync,
    "transactions": psycopg_transactions,
    "copy": psycopg_copy,
    "pipeline": psycopg_pipeline,
    "cursors": psycopg_cursors,
    "prepared": psycopg_prepared,
    "notify": psycopg_notify,
    "cancel": psycopg_cancel,
    "async": lambda: asyncio.run(_psycopg_async()),
    "asyncpg": lambda: asyncio.run(_asyncpg()),
    "sqlalchemy": sqlalchemy_core,
}


def main() -> None:
    for name in sys.argv[1:]:
        print(json.dumps(SCENARIOS[name](), default=str), flush=True)


if __name__ == "__main__":
    main()

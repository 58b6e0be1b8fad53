"""Where a store lives (an SQLite file or a PostgreSQL URL), its schema's version, and database errors as sentences.

SQLite runs in WAL mode with foreign keys on; a write takes the write lock at its start (BEGIN IMMEDIATE), so that two writers
wait for each other instead of failing at the end. A commit is on the disk when it returns (synchronous=FULL): what a rater was told
is saved outlives a killed process and a power cut alike.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from pydantic import TypeAdapter
from sqlalchemy import JSON, URL, Column, Connection, Dialect, Engine, Table, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from preftune.errors import DataError, DiskError, PreftuneError

BUSY_SECONDS = 10
POOL_SIZE = 20  # connections that are kept; with as many again at need, one for each of a server's 40 threads
CACHE_KIB = 32 * 1024  # at most, a connection: the indices of 100,000 rows, so that an import does not read them again and again
VERSION_TABLE = "preftune_schema"
AGAIN = "Nothing that was written before is lost: run the same command again."
SQLITE_MAGIC = b"SQLite format 3\0"
EMPTY: dict[str | bytes, type] = {"{}": dict, "[]": list, b"{}": dict, b"[]": list}  # as SQLite and PostgreSQL give them
_validate_json = TypeAdapter(Any).validator.validate_json


def url_of(path_or_url: Path | str) -> URL:
    """Return the database URL of a store's path or URL. Raises DataError where it is neither."""
    if isinstance(path_or_url, Path) or "://" not in path_or_url:
        return URL.create("sqlite", database=str(path_or_url))
    try:
        url = make_url(path_or_url)
    except ArgumentError as error:
        raise DataError("this is no database URL", path_or_url, "Write a file's path or postgresql://user@host/name.") from error
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise DataError(f'a store cannot live in "{url.drivername}"', where_of(url), "Use an SQLite file or a postgresql:// URL.")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise DataError("a store needs a file", where_of(url), "Write the file's path, for example preferences.db.")
    return url


def where_of(url: URL) -> str:
    """Return how a store is named in messages: its path, or its URL without the password."""
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)


def engine_for(url: URL) -> Engine:
    """Return an engine whose transactions begin as the module says. Raises PreftuneError where the driver is missing."""
    if url.get_backend_name() != "sqlite":
        try:
            return create_engine(url, pool_pre_ping=True, pool_size=POOL_SIZE, max_overflow=POOL_SIZE, json_deserializer=_from_json)
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            raise PreftuneError("the PostgreSQL driver is not installed", where_of(url), "pip install 'preftune[postgres]'.") from error
    engine = create_engine(
        url, connect_args={"timeout": BUSY_SECONDS}, pool_size=POOL_SIZE, max_overflow=POOL_SIZE, json_deserializer=_from_json
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN would come too late; _begin does it
        connection.execute("PRAGMA foreign_keys=ON").close()
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}").close()
        connection.execute("PRAGMA synchronous=FULL").close()
        connection.execute("PRAGMA secure_delete=ON").close()  # what is deleted is overwritten: a person's data may have to go

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if statement := connection.get_execution_options().get("begin", "BEGIN"):
            # By the driver itself, in a third of the time that SQLAlchemy takes: every request of the ranking app begins some.
            connection.connection.dbapi_connection.execute(statement).close()  # type: ignore[union-attr]  # it is connected

    return engine


def _from_json(text: str | bytes) -> Any:
    # Reading a store is mostly this; most columns are empty, and pydantic's reader takes half the time of Python's.
    if len(text) == 2 and text in EMPTY:
        return EMPTY[text]()
    try:
        return _validate_json(text)
    except ValueError:
        return json.loads(text)  # a lone half of a character, which Python writes and reads


@contextmanager
def writing(engine: Engine, where: str) -> Iterator[Connection]:
    """Yield a connection in one write transaction: all of it is there at the end, or nothing."""
    with database_errors(where), engine.connect().execution_options(begin="BEGIN IMMEDIATE") as connection, connection.begin():
        yield connection


@contextmanager
def reading(engine: Engine, where: str) -> Iterator[Connection]:
    """Yield a connection that sees one state of the store, whatever others write meanwhile."""
    with database_errors(where), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


def insert_new(connection: Connection, table: Table, columns: dict[str, list[Any]]) -> None:
    """Insert rows, given by column; one whose `id` is there already is left as it is.

    What SQLAlchemy's own `execute` does, but column by column instead of value by value, since this is most of an import's time.
    """
    dialect = connection.dialect
    statement, places = _insertion(table, tuple(columns), dialect)
    names = places or list(columns)
    rows: list[Any] = list(zip(*(_bound(columns[name], table.c[name], dialect) for name in names), strict=True))
    if places is None:
        rows = [dict(zip(names, row, strict=True)) for row in rows]
    connection.exec_driver_sql(statement, rows)


@lru_cache(64)
def _insertion(table: Table, names: tuple[str, ...], dialect: Dialect) -> tuple[str, list[str] | None]:
    # Kept, as compiling takes longer than writing a row. Returns the statement and, where the driver counts places, the column at each.
    insert = postgresql.insert(table) if dialect.name == "postgresql" else sqlite_dialect.insert(table)
    compiled = insert.on_conflict_do_nothing(index_elements=["id"]).compile(dialect=dialect, column_keys=list(names))
    return str(compiled), list(compiled.positiontup or ()) if compiled.positional else None


def _bound(values: list[Any], column: Column[Any], dialect: Dialect) -> list[Any]:
    # The values of one column as the driver takes them.
    change = column.type.dialect_impl(dialect).bind_processor(dialect)
    if change is None:
        return values
    if isinstance(column.type, JSON):  # most are empty, and need no encoder
        return [change(value) if value or value is None else "{}" if isinstance(value, dict) else "[]" for value in values]
    return [change(value) for value in values]


@contextmanager
def database_errors(where: str) -> Iterator[None]:
    """Turn what a database says into a sentence."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        said = error.orig if isinstance(error, DBAPIError) else error
        raise _sentence(" ".join(str(said).split()), where) from error


def locked(where: str) -> PreftuneError:
    """Return the error that says that others have kept the store busy for too long."""
    return PreftuneError(f"another program has been writing to the store for over {BUSY_SECONDS} seconds", where, AGAIN)


def _sentence(said: str, where: str) -> PreftuneError:
    low = said.lower()
    if "locked" in low:
        return locked(where)
    if "is full" in low or "no space left" in low:
        folder = next((p for p in Path(where).absolute().parents if p.exists()), Path("."))
        free = shutil.disk_usage(folder).free / 2**20
        return DiskError(f"the disk is full ({free:.0f} MiB free)", where, f"Make room. {AGAIN}")
    if "not a database" in low or "malformed" in low:
        return DataError("the file is damaged or not a store", where, "Take your last copy of it.")
    if "readonly" in low or "unable to open" in low or "permission denied" in low:
        return PreftuneError(f"the store cannot be opened or written ({said})", where, "Look at the rights of the file and its folder.")
    if "foreign key" in low:
        return DataError(
            "a record speaks of a prompt or judgement that is not in the store",
            where,
            "Add the prompt (or the judgement that is superseded) in the same call, or before.",
        )
    return PreftuneError(f"the database says: {said}", where, "If this is a server, see that it runs and that the URL is right.")


def _alembic() -> Config:
    config = Config()
    folder = str(Path(__file__).with_name("migrations")).replace("%", "%%")
    config.set_main_option("script_location", folder)
    config.set_main_option("path_separator", "os")
    return config


def revisions() -> list[str]:
    """Return the schema's versions, oldest first."""
    return [script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()][::-1]


def revision_of(engine: Engine, where: str, *, is_new: bool = False) -> str | None:
    """Return the schema's version in a database, or None where there is no store in it.

    is_new: whether a store may be made here. Raises DataError then, where the database is another program's.
    """
    with reading(engine, where) as connection:
        if inspect(connection).has_table(VERSION_TABLE):
            return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
        tables = inspect(connection).get_table_names()
    if tables and is_new:
        named = ", ".join(tables[:3])
        raise DataError(f"the database here belongs to another program (it holds {named})", where, "Give a path of its own.")
    return None


def upgrade(engine: Engine, where: str, revision: str = "head") -> None:
    """Bring a database's schema to a version, whole or not at all; its rows stay."""
    if engine.dialect.name == "sqlite":
        with database_errors(where), engine.connect().execution_options(begin="") as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # stays with the file; cannot be set in a transaction
    with writing(engine, where) as connection:
        if engine.dialect.name == "postgresql":  # two programs that upgrade at once wait for each other
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": VERSION_TABLE})
        config = _alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def check_file(path: Path, *, new: bool) -> None:
    """Check that a path may be a store's. new: whether nothing, or an empty file, may be there; its folder is made then.

    Raises DataError where it may not.
    """
    if path.is_dir():
        raise DataError("this is a folder", str(path), "Give the path of the store's file, for example preferences.db.")
    if not path.exists():
        if new:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(f"the folder cannot be made ({error.strerror})", str(path.parent), "Give another path.") from error
            return
        raise DataError("there is no store here", str(path), f"Make one: preftune init {path.parent}, or give another path.")
    try:
        with path.open("rb") as file:
            head = file.read(len(SQLITE_MAGIC))
    except OSError as error:
        raise DataError(f"the file cannot be read ({error.strerror})", str(path), "Look at its rights.") from error
    if head != SQLITE_MAGIC and not (new and not head):
        what = "this file is not a store" if head else "this file is empty, so there is no store in it"
        raise DataError(what, str(path), "Give the path of a store, or import a data file with preftune import.")

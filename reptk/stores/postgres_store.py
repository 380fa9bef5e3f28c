"""PostgreSQL with pgvector: a table of a database, with an HNSW index; https://github.com/pgvector/pgvector."""

import secrets
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from reptk.config.registry import STORES
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.core.passwords import redacted, without_secrets
from reptk.stores.postgres_rights import read_grants, write_grants
from reptk.stores.protocol import (
    Collection,
    StoredRows,
    require_new_collection,
    require_store_package,
    require_unchanged,
)

DEFAULT_TABLE = "embeddings"

MAX_INDEXED_VECTOR_WIDTH = 2000
MAX_INDEXED_HALFVEC_WIDTH = 4000
MAX_WIDTH = 16_000
"""Limits of pgvector: values per vector in an HNSW index, in float32 and float16, and in a table."""

MAX_SEARCH_EFFORT = 1000
MIN_SEARCH_EFFORT = 100
CANDIDATES_PER_NEIGHBOR = 4
"""hnsw.ef_search is so many times k, within these limits, which are pgvector's; a larger k is searched without the index."""

MAX_NAME_BYTES = 63
"""PostgreSQL cuts off what is longer."""

CONNECT_SECONDS = 10
BLOCK_ROWS = 10_000


@STORES.register("postgresql")
class PostgresStore:
    """postgresql://USER@HOST/DATABASE?table=NAME, a table with the columns number, id, path, label, class and vector.

    A password is taken from the address, PGPASSWORD or ~/.pgpass. The index is HNSW by cosine distance. Vectors of float16, and
    those of 2,001 to 4,000 values, are stored as halfvec; wider ones are searched without an index. A table that replaces
    another gets the rights that were granted on it.

    Args:
        address: of libpq, with the parameter `table`, by default "embeddings", which may be `schema.table`.

    Raises:
        UsageError: the address is not valid.
        EnvironmentProblem: the packages psycopg or pgvector are missing.
    """

    def __init__(self, address: str) -> None:
        self.name = redacted(address)
        self._address = address
        require_store_package("postgresql:", "psycopg", "postgres")
        require_store_package("postgresql:", "pgvector", "postgres")
        self._conninfo, table = _split_address(address)
        self._table = tuple(table.split("."))
        if not all(self._table) or len(self._table) > 2:
            raise UsageError(f"{self.name}: table must be a name, or schema.name, got {table!r}")
        if len(self._table[-1].encode()) > MAX_NAME_BYTES:
            raise UsageError(f"{self.name}: the name of a table has at most {MAX_NAME_BYTES} bytes")
        self._connection: Any = None

    def write(self, collection: Collection, blocks: Iterable[StoredRows], *, replace: bool) -> None:
        if collection.width > MAX_WIDTH:
            raise UsageError(
                f"{self.name}: vectors of {collection.width:,} values; pgvector stores at most {MAX_WIDTH:,}"
            )
        # One transaction: readers see the old table until all rows and the index are there, and after an error nothing changes.
        with self._errors("write"), self._transaction() as connection:
            self._create_extension(connection)
            is_taken, existing = self._existing_collection(connection)
            require_new_collection(self.name, existing, collection, replace=replace, is_taken=is_taken)
            if is_taken:
                self._check_droppable(connection)
            self._write_rows(connection, collection, blocks, is_replaced=is_taken)

    def read_collection(self) -> Collection:
        with self._errors("read"), self._transaction() as connection:
            is_taken, collection = self._existing_collection(connection)
            if not is_taken:
                raise DataError(f"{self.name}: there is no such table. Write it: reptk export EMBEDDINGS --to ADDRESS")
            if collection is None:
                raise DataError(f"{self.name} was not written by reptk, which does not know what its columns hold")
            width_query = "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'vector'"
            row = connection.execute(width_query, [self._quoted_table(connection)]).fetchone()
            count_query = self._sql("SELECT count(*) FROM {table}")
            count = connection.execute(count_query).fetchone()[0]
        width = 0  # the column is gone
        if row is not None:
            width = row[0]
        require_unchanged(self.name, collection, count, width)
        return collection

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        similarities = np.full((len(queries), k), -np.inf, np.float32)
        numbers = np.full((len(queries), k), -1)
        with self._errors("search"), self._transaction() as connection:
            to_query = self._query_type(connection)
            self._set_search_effort(connection, k)
            # Not prepared, and with k as a literal: otherwise the planner does not know how few rows are needed.
            statement = self._sql(
                f"SELECT number, vector <=> %s AS distance FROM {{table}} ORDER BY distance LIMIT {int(k)}"
            )
            for row, query in enumerate(queries):
                matches = connection.execute(statement, [to_query(query)], prepare=False).fetchall()
                # Equal similarities in the order of their rows; the index returns them in any.
                matches.sort(key=lambda pair: (pair[1], pair[0]))
                numbers[row, : len(matches)] = [number for number, _ in matches]
                similarities[row, : len(matches)] = [1 - distance for _, distance in matches]
        return similarities, numbers

    def fetch(self, numbers: NDArray[np.int64]) -> StoredRows:
        statement = self._sql(
            "SELECT number, id, path, label, class, vector FROM {table} WHERE number = ANY(%s) ORDER BY number"
        )
        with self._errors("read"), self._transaction() as connection:
            wanted = np.unique(numbers).tolist()
            rows = connection.cursor(binary=True).execute(statement, [wanted]).fetchall()
        by_number = {row[0]: row for row in rows}
        missing = [number for number in numbers.tolist() if number not in by_number]
        if missing:
            raise DataError(f"{self.name} has no row {missing[0]}")
        ordered = [by_number[number] for number in numbers.tolist()]
        vectors = np.zeros((0, 0), np.float32)
        if ordered:
            vectors = np.stack([row[5].to_numpy() for row in ordered])
        labels = np.array([row[3] for row in ordered], np.int64)
        return StoredRows(
            numbers,
            vectors,
            [row[1] for row in ordered],
            [row[2] for row in ordered],
            labels,
            [row[4] for row in ordered],
        )

    def find(self, image_id: str) -> int | None:
        if "\0" in image_id:
            return None  # PostgreSQL stores no such text
        with self._errors("read"), self._transaction() as connection:
            statement = self._sql("SELECT min(number) FROM {table} WHERE id = %s")
            return connection.execute(statement, [image_id]).fetchone()[0]

    def vectors(self) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        with (
            self._errors("read"),
            self._transaction() as connection,
            # A cursor with a name is on the server, so that the client holds one block at a time.
            connection.cursor(name="reptk", binary=True) as cursor,
        ):
            cursor.execute(self._sql("SELECT number, vector FROM {table} ORDER BY number"))
            while rows := cursor.fetchmany(BLOCK_ROWS):
                numbers = np.array([number for number, _ in rows])
                yield numbers, np.stack([vector.to_numpy() for _, vector in rows])

    def index_kind(self) -> str:
        # By the number of the table: names of tables in other schemas may not be looked up by everybody.
        statement = (
            "SELECT count(*) FROM pg_index JOIN pg_class ON pg_class.oid = pg_index.indexrelid "
            "JOIN pg_am ON pg_am.oid = pg_class.relam WHERE pg_index.indrelid = to_regclass(%s) AND pg_am.amname = 'hnsw'"
        )
        with self._errors("read"), self._transaction() as connection:
            has_index = connection.execute(statement, [self._quoted_table(connection)]).fetchone()[0]
        if has_index:
            return "HNSW"
        return "exact"

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Writing

    def _create_extension(self, connection: Any) -> None:
        import psycopg
        from pgvector.psycopg import register_vector

        if connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone() is None:
            try:
                connection.execute("CREATE EXTENSION vector")
            except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported) as cause:
                raise EnvironmentProblem(
                    f"{self.name}: the server has no pgvector. Install it there: https://github.com/pgvector/pgvector"
                ) from cause
            except psycopg.errors.InsufficientPrivilege as cause:
                raise EnvironmentProblem(
                    f"{self.name}: the database does not use pgvector yet, which this user may not change. Somebody who "
                    "may runs: CREATE EXTENSION vector"
                ) from cause
        register_vector(connection)

    def _check_droppable(self, connection: Any) -> None:
        """Raise the error of dropping the table, e.g. of a view that needs it, before all rows are written, not after."""
        with connection.transaction(force_rollback=True):
            connection.execute(self._sql("DROP TABLE {table}"))

    def _write_rows(
        self, connection: Any, collection: Collection, blocks: Iterable[StoredRows], *, is_replaced: bool
    ) -> None:
        from pgvector import HalfVector, Vector

        vector_type = _vector_type(collection)
        vector_class = {"vector": Vector, "halfvec": HalfVector}[vector_type]
        # Under another name until all is there, so that the old table is locked only at the end.
        temporary = (*self._table[:-1], f"reptk_{secrets.token_hex(8)}")
        connection.execute(
            self._sql(
                "CREATE TABLE {temporary} (number bigint NOT NULL, id text NOT NULL, path text, label bigint NOT NULL, "
                f"class text NOT NULL, vector {vector_type}({collection.width}) NOT NULL)",
                temporary,
            )
        )
        copy_statement = self._sql(
            "COPY {temporary} (number, id, path, label, class, vector) FROM STDIN WITH (FORMAT BINARY)", temporary
        )
        with connection.cursor() as cursor, cursor.copy(copy_statement) as copy:
            copy.set_types(["int8", "text", "text", "int8", "text", vector_type])
            for block in blocks:
                self._check_text(block)
                columns = zip(
                    block.numbers.tolist(),
                    block.ids,
                    block.paths,
                    block.labels.tolist(),
                    block.class_names,
                    block.vectors,
                    strict=True,
                )
                for *values, vector in columns:
                    copy.write_row((*values, vector_class(vector)))
        connection.execute(self._sql("ALTER TABLE {temporary} ADD PRIMARY KEY (number)", temporary))
        if collection.width <= MAX_INDEXED_HALFVEC_WIDTH:
            statement = f"CREATE INDEX ON {{temporary}} USING hnsw (vector {vector_type}_cosine_ops)"
            with _reported_notices(connection):
                connection.execute(self._sql(statement, temporary))
        self._set_comment(connection, temporary, collection)
        if is_replaced:
            write_grants(connection, temporary, read_grants(connection, self._quoted_table(connection)))
            connection.execute(self._sql("DROP TABLE {table}"))
        connection.execute(self._sql("ALTER TABLE {temporary} RENAME TO {new_name}", temporary))
        connection.execute(self._sql("ANALYZE {table}"))

    def _check_text(self, block: StoredRows) -> None:
        for text in (*block.ids, *(path for path in block.paths if path is not None)):
            if "\0" in text:
                raise DataError(f"{self.name}: PostgreSQL stores no text with a zero byte, as in the id {text!r}")

    def _set_comment(self, connection: Any, table: tuple[str, ...], collection: Collection) -> None:
        from psycopg import sql

        statement = sql.SQL("COMMENT ON TABLE {table} IS {record}")
        record = sql.Literal(collection.to_json())
        connection.execute(statement.format(table=sql.Identifier(*table), record=record))

    # Reading

    def _existing_collection(self, connection: Any) -> tuple[bool, Collection | None]:
        """Return whether there is anything of this name, and the collection, if it is one."""
        query = "SELECT to_regclass(%(table)s) IS NOT NULL, obj_description(to_regclass(%(table)s), 'pg_class')"
        row = connection.execute(query, {"table": self._quoted_table(connection)}).fetchone()
        return row[0], Collection.from_json(row[1], self.name)

    def _query_type(self, connection: Any) -> type:
        """Return the class that queries have to be of, and make the connection know it."""
        from pgvector import HalfVector, Vector
        from pgvector.psycopg import register_vector

        register_vector(connection)
        statement = (
            "SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = "
        )
        row = connection.execute(statement + "'vector'", [self._quoted_table(connection)]).fetchone()
        if row is not None and row[0].endswith("halfvec"):
            return HalfVector
        return Vector

    def _set_search_effort(self, connection: Any, k: int) -> None:
        if k > MAX_SEARCH_EFFORT:
            connection.execute("SET LOCAL enable_indexscan = off")
            return
        effort = min(MAX_SEARCH_EFFORT, max(MIN_SEARCH_EFFORT, CANDIDATES_PER_NEIGHBOR * k))
        connection.execute(f"SET LOCAL hnsw.ef_search = {effort}")

    # Connection

    def _sql(self, statement: str, temporary: tuple[str, ...] = ("",)) -> Any:
        """Return a statement with quoted names in place of {table}, {temporary} and {new_name}."""
        from psycopg import sql

        names = {"table": self._table, "temporary": temporary, "new_name": self._table[-1:]}
        quoted = {key: sql.Identifier(*name) for key, name in names.items() if f"{{{key}}}" in statement}
        return sql.SQL(statement).format(**quoted)

    def _quoted_table(self, connection: Any) -> str:
        from psycopg import sql

        return sql.Identifier(*self._table).as_string(connection)

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """Yield the connection; what the block does is committed at its end, and undone if it raises."""
        from pgvector.psycopg import register_vector

        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
            with self._connection.transaction():
                if self._connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone():
                    register_vector(self._connection)
        with self._connection.transaction():
            yield self._connection

    def _connect(self) -> Any:
        import psycopg

        try:
            options = psycopg.conninfo.conninfo_to_dict(self._conninfo)
        except psycopg.Error as cause:
            # The message of libpq quotes parts of the address, which may be those of a password.
            raise UsageError(
                f"{self.name} is not a valid address. Its form is postgresql://user:password@host:port/database?table=name; "
                "characters such as @ / ? # % in a password are written as %40 %2F %3F %23 %25"
            ) from cause
        options.setdefault("connect_timeout", str(CONNECT_SECONDS))
        options.setdefault("application_name", "reptk")
        try:
            return psycopg.connect(**options)
        except psycopg.OperationalError as cause:
            reason = self._reason(cause)
            raise EnvironmentProblem(
                f"no connection to {self.name}: {reason}. Is the server running, and are user, password (PGPASSWORD, "
                "~/.pgpass) and database right?"
            ) from cause

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Turn an error of the database into an EnvironmentProblem with one line, or a UsageError if a name is taken."""
        import psycopg

        try:
            yield
        except psycopg.errors.DiskFull as cause:
            raise EnvironmentProblem(
                f"the disk of the server of {self.name} is full ({self._reason(cause)}); nothing was changed. Free some space "
                "there"
            ) from cause
        except psycopg.errors.DuplicateTable as cause:
            raise UsageError(f"{self.name} was written by another process meanwhile; nothing was changed") from cause
        except psycopg.errors.DependentObjectsStillExist as cause:
            dependents = (cause.diag.message_detail or "").replace("\n", "; ")
            raise UsageError(
                f"{self.name} cannot be replaced, since something in the database needs it ({dependents}). Drop that first, or "
                "choose another name"
            ) from cause
        except psycopg.errors.InsufficientPrivilege as cause:
            raise EnvironmentProblem(f"cannot {action} {self.name}: {self._reason(cause)}") from cause
        except psycopg.Error as cause:
            # E.g. the server has ended the connection.
            raise EnvironmentProblem(f"cannot {action} {self.name}: {self._reason(cause)}") from cause

    def _reason(self, error: Exception) -> str:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return without_secrets(lines[0].strip().removesuffix("."), self._address)


def _split_address(address: str) -> tuple[str, str]:
    """Return the address without the parameter `table`, as libpq takes it, and the name of the table.

    Raises:
        UsageError: it is not an address.
    """
    base, _, query = address.partition("?")
    parameters = []
    if query:
        # As libpq does it, to which + is no blank.
        for parameter in query.split("&"):
            key, separator, value = parameter.partition("=")
            if not separator:
                raise UsageError(f"{redacted(address)} is not a valid address, e.g. postgresql://user@host/database")
            parameters.append((unquote(key), unquote(value)))
    tables = [value for key, value in parameters if key == "table"]
    if len(tables) > 1:
        raise UsageError(f"{redacted(address)} names several tables")
    table = DEFAULT_TABLE
    if tables:
        table = tables[0]
    others = [(key, value) for key, value in parameters if key != "table"]
    if others:
        base += "?" + "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in others)
    return base, table


def _vector_type(collection: Collection) -> str:
    """Return pgvector's type for the vectors of a collection."""
    if collection.half:
        return "halfvec"
    if MAX_INDEXED_VECTOR_WIDTH < collection.width <= MAX_INDEXED_HALFVEC_WIDTH:
        return "halfvec"
    return "vector"


@contextmanager
def _reported_notices(connection: Any) -> Iterator[None]:
    """Warn of the first notice of the server, e.g. that an index does not fit into maintenance_work_mem."""
    notices: list[str] = []

    def collect(diagnostic: Any) -> None:
        notices.append(f"{diagnostic.message_primary}. {diagnostic.message_hint or ''}".strip())

    connection.add_notice_handler(collect)
    try:
        yield
    finally:
        connection.remove_notice_handler(collect)
    if notices:
        warnings.warn(f"the server says: {notices[0]}", stacklevel=4)

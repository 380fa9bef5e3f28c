"""PostgreSQL with pgvector: a table of a database, with an HNSW index; https://github.com/pgvector/pgvector."""

import secrets
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reptk.config.registry import STORES
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.stores.postgres_connection import PostgresConnection, reported_notices
from reptk.stores.postgres_rights import read_grants, write_grants
from reptk.stores.protocol import (
    Collection,
    StoredRows,
    ranked,
    require_collection,
    require_new_collection,
    require_store_package,
    require_unchanged,
)

MAX_INDEXED_VECTOR_WIDTH = 2000
MAX_INDEXED_HALFVEC_WIDTH = 4000
MAX_WIDTH = 16_000
"""Limits of pgvector: values per vector in an HNSW index, in float32 and float16, and in a table."""

MAX_EF_SEARCH = 1000
MIN_EF_SEARCH = 100
CANDIDATES_PER_NEIGHBOR = 4
"""hnsw.ef_search is CANDIDATES_PER_NEIGHBOR * k, at least MIN_EF_SEARCH and at most MAX_EF_SEARCH, which is pgvector's limit.

A larger k is searched without the index.
"""

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
        require_store_package("postgresql:", "psycopg", "postgres")
        require_store_package("postgresql:", "pgvector", "postgres")
        self._database = PostgresConnection(address)
        self.name = self._database.name

    def write(self, collection: Collection, blocks: Iterable[StoredRows], *, replace: bool) -> None:
        if collection.width > MAX_WIDTH:
            raise UsageError(
                f"{self.name}: vectors of {collection.width:,} values; pgvector stores at most {MAX_WIDTH:,}"
            )
        # One transaction: readers see the old table until all rows and the index are there, and after an error nothing changes.
        with self._database.errors("write"), self._database.transaction() as connection:
            self._create_extension(connection)
            is_taken, existing = self._existing_collection(connection)
            require_new_collection(self.name, existing, collection, replace=replace, is_taken=is_taken)
            if is_taken:
                self._check_droppable(connection)
            self._write_rows(connection, collection, blocks, is_replaced=is_taken)

    def read_collection(self) -> Collection:
        with self._database.errors("read"), self._database.transaction() as connection:
            is_taken, collection = self._existing_collection(connection)
            collection = require_collection(self.name, collection, exists=is_taken)
            width_query = "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'vector'"
            row = connection.execute(width_query, [self._database.quoted_table(connection)]).fetchone()
            count_query = self._database.sql("SELECT count(*) FROM {table}")
            count = connection.execute(count_query).fetchone()[0]
        width = 0  # the column is gone
        if row is not None:
            width = row[0]
        require_unchanged(self.name, collection, count, width)
        return collection

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        with self._database.errors("search"), self._database.transaction() as connection:
            query_type = self._query_type(connection)
            self._set_ef_search(connection, k)
            return ranked((self._matches(connection, query_type(query), k) for query in queries), k)

    def fetch(self, numbers: NDArray[np.int64]) -> StoredRows:
        statement = self._database.sql(
            "SELECT number, id, path, label, class, vector FROM {table} WHERE number = ANY(%s) ORDER BY number"
        )
        with self._database.errors("read"), self._database.transaction() as connection:
            distinct_numbers = np.unique(numbers).tolist()
            rows = connection.cursor(binary=True).execute(statement, [distinct_numbers]).fetchall()
        vectors = np.zeros((0, 0), np.float32)
        if rows:
            vectors = np.stack([row[5].to_numpy() for row in rows])
        stored = StoredRows(
            np.array([row[0] for row in rows], np.int64),
            vectors,
            [row[1] for row in rows],
            [row[2] for row in rows],
            np.array([row[3] for row in rows], np.int64),
            [row[4] for row in rows],
        )
        return stored.in_order(numbers, self.name)

    def find(self, image_id: str) -> int | None:
        if "\0" in image_id:
            return None  # PostgreSQL stores no such text
        with self._database.errors("read"), self._database.transaction() as connection:
            statement = self._database.sql("SELECT min(number) FROM {table} WHERE id = %s")
            return connection.execute(statement, [image_id]).fetchone()[0]

    def vectors(self) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        with (
            self._database.errors("read"),
            self._database.transaction() as connection,
            # A cursor with a name is on the server, so that the client holds one block at a time.
            connection.cursor(name="reptk", binary=True) as cursor,
        ):
            cursor.execute(self._database.sql("SELECT number, vector FROM {table} ORDER BY number"))
            while rows := cursor.fetchmany(BLOCK_ROWS):
                numbers = np.array([number for number, _ in rows])
                yield numbers, np.stack([vector.to_numpy() for _, vector in rows])

    def index_kind(self) -> str:
        # By the number of the table: names of tables in other schemas may not be looked up by everybody.
        statement = (
            "SELECT count(*) FROM pg_index JOIN pg_class ON pg_class.oid = pg_index.indexrelid "
            "JOIN pg_am ON pg_am.oid = pg_class.relam WHERE pg_index.indrelid = to_regclass(%s) AND pg_am.amname = 'hnsw'"
        )
        with self._database.errors("read"), self._database.transaction() as connection:
            has_index = connection.execute(statement, [self._database.quoted_table(connection)]).fetchone()[0]
        if has_index:
            return "HNSW"
        return "exact"

    def close(self) -> None:
        self._database.close()

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
            connection.execute(self._database.sql("DROP TABLE {table}"))

    def _write_rows(
        self, connection: Any, collection: Collection, blocks: Iterable[StoredRows], *, is_replaced: bool
    ) -> None:
        # Under another name until all is there, so that the old table is locked only at the end.
        temporary = (*self._database.table[:-1], f"reptk_{secrets.token_hex(8)}")
        self._create_table(connection, temporary, collection)
        self._copy_rows(connection, temporary, _vector_type(collection), blocks)
        self._create_indexes(connection, temporary, collection)
        self._set_comment(connection, temporary, collection)
        self._publish(connection, temporary, is_replaced=is_replaced)

    def _create_table(self, connection: Any, table: tuple[str, ...], collection: Collection) -> None:
        statement = (
            "CREATE TABLE {temporary} (number bigint NOT NULL, id text NOT NULL, path text, label bigint NOT NULL, "
            f"class text NOT NULL, vector {_vector_type(collection)}({collection.width}) NOT NULL)"
        )
        connection.execute(self._database.sql(statement, table))

    def _copy_rows(
        self, connection: Any, table: tuple[str, ...], vector_type: str, blocks: Iterable[StoredRows]
    ) -> None:
        from pgvector import HalfVector, Vector

        vector_class = {"vector": Vector, "halfvec": HalfVector}[vector_type]
        statement = "COPY {temporary} (number, id, path, label, class, vector) FROM STDIN WITH (FORMAT BINARY)"
        with connection.cursor() as cursor, cursor.copy(self._database.sql(statement, table)) as copy:
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

    def _create_indexes(self, connection: Any, table: tuple[str, ...], collection: Collection) -> None:
        connection.execute(self._database.sql("ALTER TABLE {temporary} ADD PRIMARY KEY (number)", table))
        if collection.width > MAX_INDEXED_HALFVEC_WIDTH:
            return
        statement = f"CREATE INDEX ON {{temporary}} USING hnsw (vector {_vector_type(collection)}_cosine_ops)"
        with reported_notices(connection):
            connection.execute(self._database.sql(statement, table))

    def _publish(self, connection: Any, table: tuple[str, ...], *, is_replaced: bool) -> None:
        """Give a complete table its name, in place of the table that has it."""
        if is_replaced:
            write_grants(connection, table, read_grants(connection, self._database.quoted_table(connection)))
            connection.execute(self._database.sql("DROP TABLE {table}"))
        connection.execute(self._database.sql("ALTER TABLE {temporary} RENAME TO {new_name}", table))
        connection.execute(self._database.sql("ANALYZE {table}"))

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
        row = connection.execute(query, {"table": self._database.quoted_table(connection)}).fetchone()
        return row[0], Collection.from_json(row[1], self.name)

    def _query_type(self, connection: Any) -> type:
        """Return the class that queries have to be of, and make the connection know it."""
        from pgvector import HalfVector, Vector
        from pgvector.psycopg import register_vector

        register_vector(connection)
        statement = (
            "SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = "
        )
        row = connection.execute(statement + "'vector'", [self._database.quoted_table(connection)]).fetchone()
        if row is not None and row[0].endswith("halfvec"):
            return HalfVector
        return Vector

    def _set_ef_search(self, connection: Any, k: int) -> None:
        if k > MAX_EF_SEARCH:
            connection.execute("SET LOCAL enable_indexscan = off")
            return
        ef_search = min(MAX_EF_SEARCH, max(MIN_EF_SEARCH, CANDIDATES_PER_NEIGHBOR * k))
        connection.execute(f"SET LOCAL hnsw.ef_search = {ef_search}")

    def _matches(self, connection: Any, query: Any, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the similarities and numbers (m,) of the rows that are most similar to one query."""
        # Not prepared, and with k as a literal: otherwise the planner does not know how few rows are needed.
        statement = self._database.sql(
            f"SELECT number, vector <=> %s AS distance FROM {{table}} ORDER BY distance LIMIT {int(k)}"
        )
        rows = connection.execute(statement, [query], prepare=False).fetchall()
        distances = np.array([distance for _, distance in rows], np.float64)
        return 1 - distances, np.array([number for number, _ in rows], np.int64)


def _vector_type(collection: Collection) -> str:
    """Return pgvector's type for the vectors of a collection."""
    if collection.dtype == "float16":
        return "halfvec"
    if MAX_INDEXED_VECTOR_WIDTH < collection.width <= MAX_INDEXED_HALFVEC_WIDTH:
        return "halfvec"
    return "vector"

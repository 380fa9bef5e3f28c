"""A connection to PostgreSQL, and the table that an address names: transactions, quoted names, and errors in one line."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

from reptk.core.errors import EnvironmentProblem, UsageError, first_line
from reptk.core.passwords import redacted, without_secrets

DEFAULT_TABLE = "embeddings"

MAX_NAME_BYTES = 63
"""PostgreSQL cuts off what is longer."""

CONNECT_SECONDS = 10


class PostgresConnection:
    """A connection to the database of an address, opened when it is first used.

    Args:
        address: of libpq, with the parameter `table`; see `PostgresStore`.

    Attributes:
        name: the address without its password.
        table: the name of the table, perhaps with that of its schema before it.

    Raises:
        UsageError: the address is not valid.
    """

    def __init__(self, address: str) -> None:
        self.name = redacted(address)
        self._address = address
        self._conninfo, table = _split_address(address)
        self.table = tuple(table.split("."))
        if not all(self.table) or len(self.table) > 2:
            raise UsageError(f"{self.name}: table must be a name, or schema.name, got {table!r}")
        if len(self.table[-1].encode()) > MAX_NAME_BYTES:
            raise UsageError(f"{self.name}: the name of a table has at most {MAX_NAME_BYTES} bytes")
        self._connection: Any = None

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Yield the connection; what the block does is committed at its end, and undone if it raises."""
        from pgvector.psycopg import register_vector

        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
            with self._connection.transaction():
                if self._connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone():
                    register_vector(self._connection)
        with self._connection.transaction():
            yield self._connection

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
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

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def sql(self, statement: str, temporary: tuple[str, ...] = ("",)) -> Any:
        """Return a statement with quoted names in place of {table}, {temporary} and {new_name}."""
        from psycopg import sql

        names = {"table": self.table, "temporary": temporary, "new_name": self.table[-1:]}
        quoted = {key: sql.Identifier(*name) for key, name in names.items() if f"{{{key}}}" in statement}
        return sql.SQL(statement).format(**quoted)

    def quoted_table(self, connection: Any) -> str:
        """Return the name of the table as it is written in a statement."""
        from psycopg import sql

        return sql.Identifier(*self.table).as_string(connection)

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

    def _reason(self, error: Exception) -> str:
        return without_secrets(first_line(error).strip().removesuffix("."), self._address)


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


@contextmanager
def reported_notices(connection: Any) -> Iterator[None]:
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

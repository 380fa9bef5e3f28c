"""PostgresStore: what is special about it: types by width, rights, passwords, a server that is down, full or ends."""

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest

import reptk
from embedding_inputs import make_embeddings, unit_vectors
from reptk.core.errors import DataError, EnvironmentProblem, UsageError
from reptk.embeddings import StoreIndex, export, verify_recall
from reptk.stores import Collection, StoredRows, open_store
from store_servers import postgres_server, require_packages

pytestmark = [pytest.mark.usefixtures("one_thread")]

EMBEDDINGS = make_embeddings(["a", "b", "c"])


@contextmanager
def connected() -> Iterator:
    require_packages("postgresql")
    import psycopg

    with psycopg.connect(postgres_server(), autocommit=True) as connection:
        yield connection


@pytest.fixture
def address() -> str:
    return f"{postgres_server()}&table=photos_{uuid.uuid4().hex[:8]}"


def table_of(address: str) -> str:
    return address.rpartition("=")[2]


@pytest.mark.parametrize(
    ("width", "half", "vector_type", "kind"),
    [
        (2000, False, "vector", "HNSW"),
        (2001, False, "halfvec", "HNSW"),
        (8, True, "halfvec", "HNSW"),
        (4001, False, "vector", "exact"),
    ],
)
def test_types_by_width(width: int, half: bool, vector_type: str, kind: str, address: str) -> None:
    vectors = unit_vectors(6, width)
    if half:
        vectors = vectors.half()
    with closing(export(reptk.Embeddings(vectors, list("abcdef")), address)) as index:
        assert index.store.index_kind() == kind
        assert verify_recall(index, k=3).value == 1
    with connected() as connection:
        query = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'vector'"
        assert connection.execute(query, [table_of(address)]).fetchone() == (f"{vector_type}({width})",)


def test_vectors_that_are_too_wide(address: str) -> None:
    with pytest.raises(UsageError, match="at most 16,000"):
        export(reptk.Embeddings(unit_vectors(2, 16_001), list("ab")), address)


def test_the_index_is_used_and_many_neighbors_are_searched_without_it(address: str) -> None:
    vectors = unit_vectors(1200, 4)
    embeddings = reptk.Embeddings(vectors, list(map(str, range(1200))))
    with closing(export(embeddings, address)) as index, connected() as connection:
        statement = f"EXPLAIN SELECT number FROM {table_of(address)} ORDER BY vector <=> '[1,0,0,0]' LIMIT 5"
        connection.execute("SET enable_seqscan = off")
        assert "hnsw" not in table_of(address)
        plan = "\n".join(row[0] for row in connection.execute(statement).fetchall())
        assert "Index Scan" in plan
        _, rows = index.search(vectors[:2], 1100)
        _, expected = reptk.embeddings.Index(embeddings).search(vectors[:2], 1100)
        assert (rows >= 0).all(), "more than hnsw.ef_search allows"
        assert (rows == expected).double().mean() > 0.95


def test_tables_of_others_are_left_alone(address: str) -> None:
    table = table_of(address)
    with connected() as connection:
        connection.execute(f"CREATE TABLE {table} (vector text)")
        connection.execute(f"COMMENT ON TABLE {table} IS '[not a record'")
        with pytest.raises(UsageError, match="exists and was not written by reptk"):
            export(EMBEDDINGS, address, force=True)
        with pytest.raises(DataError, match="was not written by reptk"):
            StoreIndex.open(address)
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_a_table_that_has_changed_is_noticed(address: str) -> None:
    export(EMBEDDINGS, address)
    with connected() as connection:
        connection.execute(f"DELETE FROM {table_of(address)} WHERE number = 1")
    with pytest.raises(DataError, match=r"has changed .* holds 2 vectors of 5 values"):
        StoreIndex.open(address)


def test_names_are_quoted_and_may_be_in_a_schema(address: str) -> None:
    schema = f"s_{uuid.uuid4().hex[:8]}"
    with connected() as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        for table in (f'{schema}.Photos"; DROP TABLE x', f"{schema}.plain"):
            named = f"{postgres_server()}&table={table}"
            with closing(export(EMBEDDINGS, named)) as index:
                assert len(index) == 3
            export(EMBEDDINGS, named, force=True)
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s ORDER BY 1", [schema])
        assert names.fetchall() == [('Photos"; DROP TABLE x',), ("plain",)]
    for table in ("a.b.c", "", "x" * 64):
        with pytest.raises(UsageError, match="table"):
            export(EMBEDDINGS, f"{postgres_server()}&table={table}")


def test_an_index_in_a_schema_that_is_closed(address: str) -> None:
    name = uuid.uuid4().hex[:8]
    with connected() as connection:
        connection.execute(f"CREATE USER u_{name}")
        connection.execute(f"GRANT CREATE ON SCHEMA public TO u_{name}")
        connection.execute(f"CREATE SCHEMA s_{name}")
    export(EMBEDDINGS, f"{postgres_server()}&table=s_{name}.photos")
    export(EMBEDDINGS, address)
    as_user = address.replace("postgres:@/", f"u_{name}:@/")
    assert as_user != address
    with closing(export(EMBEDDINGS, f"{as_user}_b")) as index:
        assert index.store.index_kind() == "HNSW"


def test_rights_survive_a_replacement(address: str) -> None:
    table, user = table_of(address), f"u_{uuid.uuid4().hex[:8]}"
    rights = "SELECT relacl::text[] FROM pg_class WHERE relname = %s"
    column_rights = (
        "SELECT attname, attacl::text[] FROM pg_attribute "
        "WHERE attrelid = %s::regclass AND attacl IS NOT NULL ORDER BY attnum"
    )
    export(EMBEDDINGS, address)
    with connected() as connection:
        connection.execute(f'CREATE USER "{user}"')
        connection.execute(f'GRANT SELECT ON {table} TO "{user}" WITH GRANT OPTION')
        connection.execute(f"GRANT SELECT ON {table} TO PUBLIC")
        connection.execute(f'GRANT UPDATE (path, label) ON {table} TO "{user}"')
        before = [connection.execute(query, [table]).fetchall() for query in (rights, column_rights)]
        assert user in str(before[0])
        assert len(before[1]) == 2
        export(EMBEDDINGS, address, force=True)
        assert [connection.execute(query, [table]).fetchall() for query in (rights, column_rights)] == before
    with closing(StoreIndex.open(address.replace("postgres:@/", f"{user}:@/"))) as index:
        assert len(index) == 3


def test_a_view_of_the_table_is_noticed_before_the_rows_are_written(address: str) -> None:
    table = table_of(address)
    export(EMBEDDINGS, address)

    def blocks() -> Iterator[StoredRows]:
        pytest.fail("a row was read")
        yield

    with connected() as connection, closing(open_store(address)) as store:
        connection.execute(f"CREATE VIEW v_{table} AS SELECT id FROM {table}")
        with pytest.raises(
            UsageError, match=rf"cannot be replaced, .*view v_{table} depends on table {table}.*Drop that"
        ):
            store.write(Collection(3, 5, "float32", {}), blocks(), replace=True)
        assert connection.execute(f"SELECT count(*) FROM v_{table}").fetchone() == (3,)
        connection.execute(f"DROP VIEW v_{table}")
        export(EMBEDDINGS, address, force=True)


@pytest.mark.parametrize(
    ("written", "password"), [("a+b", "a+b"), ("a%2Bb%26c", "a+b&c"), ("a%20b", "a b"), ("a=b", "a=b")]
)
def test_a_password_in_the_parameters(written: str, password: str) -> None:
    require_packages("postgresql")
    from psycopg.conninfo import conninfo_to_dict

    store = open_store(f"postgresql://me@host/db?password={written}&table=a%2Eb&sslmode=prefer")
    options = conninfo_to_dict(store._database._conninfo)
    assert options == {"user": "me", "host": "host", "dbname": "db", "password": password, "sslmode": "prefer"}
    assert store._database.table == ("a", "b")


def test_a_full_disk_of_the_server_leaves_nothing(address: str) -> None:
    with connected() as connection:
        connection.execute(
            "CREATE FUNCTION full_disk() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE disk_full USING MESSAGE = 'could not extend file: No space left on device'; END$$"
        )
        connection.execute(
            "CREATE EVENT TRIGGER full_disk ON ddl_command_end WHEN TAG IN ('CREATE INDEX') "
            "EXECUTE FUNCTION full_disk()"
        )
        try:
            with pytest.raises(EnvironmentProblem, match=r"the disk of the server .* is full .* nothing was changed"):
                export(EMBEDDINGS, address)
        finally:
            connection.execute("DROP FUNCTION full_disk CASCADE")
        tables = "SELECT count(*) FROM pg_tables WHERE tablename = %s OR tablename LIKE 'reptk%%'"
        assert connection.execute(tables, [table_of(address)]).fetchone() == (0,)


def test_a_connection_that_ends_leaves_nothing(address: str) -> None:
    rows = StoredRows(np.arange(3), EMBEDDINGS.vectors.numpy(), list("abc"), [None] * 3, np.zeros(3, int), [""] * 3)

    def blocks() -> Iterator[StoredRows]:
        yield rows
        with connected() as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'reptk'"
            connection.execute(others)
        for _ in range(1000):
            yield rows

    with closing(open_store(address)) as store:
        with pytest.raises(EnvironmentProblem, match="cannot write"):
            store.write(Collection(3, 5, "float32", {}), blocks(), replace=False)
        with pytest.raises(DataError, match="no such collection"):
            store.read_collection()


def test_rights_and_the_extension(address: str) -> None:
    database, user = f"d_{uuid.uuid4().hex[:8]}", f"u_{uuid.uuid4().hex[:8]}"
    with connected() as connection:
        connection.execute(f"CREATE DATABASE {database}")
        connection.execute(f"CREATE USER {user}")
    other = postgres_server().replace("postgres:@/postgres", f"{user}:@/{database}")
    assert database in other
    with pytest.raises(EnvironmentProblem, match=r"does not use pgvector yet.*CREATE EXTENSION vector"):
        export(EMBEDDINGS, other)
    with pytest.raises(DataError, match="no such collection"):
        StoreIndex.open(other)
    with closing(export(EMBEDDINGS, postgres_server().replace("/postgres?", f"/{database}?"))) as index:
        assert index.store.index_kind() == "HNSW"
    with pytest.raises(EnvironmentProblem, match="permission denied"):
        StoreIndex.open(other)
    with pytest.raises(EnvironmentProblem, match="permission denied"):
        export(EMBEDDINGS, f"{other}&table=x")


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:geheim@127.0.0.1:1/db",
        "postgres://me:geheim@127.0.0.1:1/db?table=x",
        "postgresql://me:geh@/?eim@127.0.0.1:x/db",
        "postgresql://me:geheim%zz@127.0.0.1/db",
        "postgresql://127.0.0.1:1/db?user=me&password=geheim",
        "postgresql://me:geheim@127.0.0.1/db?no_parameter=1",
        "postgresql://me:geheim@127.0.0.1/db?a",
        "postgresql:me:geheim@127.0.0.1:1/db",
        "postgresql://me@corp:geheim@127.0.0.1:1/db",
        "postgresql:host=127.0.0.1 port=1 user=me password=geheim dbname=db",
    ],
)
def test_no_message_holds_a_password(address: str) -> None:
    require_packages("postgresql")
    with pytest.raises((EnvironmentProblem, UsageError)) as error:
        export(EMBEDDINGS, address)
    assert "geh" not in str(error.value)
    assert "***" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_server_that_is_down(tmp_path) -> None:
    require_packages("postgresql")
    with pytest.raises(EnvironmentProblem, match=r"no connection to .*Is the server running"):
        StoreIndex.open(f"postgresql:///db?host={tmp_path}")


def test_text_with_a_zero_byte(address: str) -> None:
    with pytest.raises(DataError, match="zero byte"):
        export(make_embeddings(["a\0b", "c"]), address)
    export(EMBEDDINGS, address)
    with pytest.raises(UsageError, match="no image with the id"):
        reptk.search(address, ids=["a\0b"])

"""Who may use a table of PostgreSQL: a table that replaces another gets the rights that were granted on the other."""

from typing import Any, NamedTuple

TABLE_GRANTS = """
SELECT NULL, CASE WHEN entry.grantee <> 0 THEN pg_get_userbyid(entry.grantee) END, entry.privilege_type, entry.is_grantable
FROM pg_class, aclexplode(coalesce(pg_class.relacl, acldefault('r', pg_class.relowner))) AS entry
WHERE pg_class.oid = to_regclass(%(table)s) AND entry.grantee <> (SELECT oid FROM pg_roles WHERE rolname = current_user)
"""

COLUMN_GRANTS = """
SELECT column_.attname, CASE WHEN entry.grantee <> 0 THEN pg_get_userbyid(entry.grantee) END, entry.privilege_type,
    entry.is_grantable
FROM pg_attribute AS column_, aclexplode(column_.attacl) AS entry
WHERE column_.attrelid = to_regclass(%(table)s) AND NOT column_.attisdropped
ORDER BY column_.attnum
"""


class Grant(NamedTuple):
    """A right on a table, or on a column of it.

    column: None for the whole table.
    grantee: a role; None for everybody.
    privilege: e.g. SELECT.
    is_grantable: whether the grantee may grant it to others.
    """

    column: str | None
    grantee: str | None
    privilege: str
    is_grantable: bool


def read_grants(connection: Any, quoted_table: str) -> list[Grant]:
    """Return the rights of others than this user on a table; its owner may be another one, too."""
    rows = []
    for query in (TABLE_GRANTS, COLUMN_GRANTS):
        rows += connection.execute(query, {"table": quoted_table}).fetchall()
    return [Grant(*row) for row in rows]


def write_grants(connection: Any, table: tuple[str, ...], grants: list[Grant]) -> None:
    """Grant rights on a table.

    Args:
        connection: of psycopg.
        table: its name, perhaps with that of its schema before it.
        grants: see `read_grants`. Those on columns that the table lacks are left out.
    """
    from psycopg import sql

    columns_query = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND NOT attisdropped"
    quoted_table = sql.Identifier(*table).as_string(connection)
    columns = {name for (name,) in connection.execute(columns_query, [quoted_table]).fetchall()}
    for grant in grants:
        # One of PostgreSQL's own words, as the catalog spells it.
        statement = sql.SQL("GRANT ") + sql.SQL(grant.privilege)
        if grant.column is not None:
            if grant.column not in columns:
                continue
            statement += sql.SQL(" ({})").format(sql.Identifier(grant.column))
        statement += sql.SQL(" ON {} TO ").format(sql.Identifier(*table))
        if grant.grantee is None:
            statement += sql.SQL("PUBLIC")
        else:
            statement += sql.Identifier(grant.grantee)
        if grant.is_grantable:
            statement += sql.SQL(" WITH GRANT OPTION")
        connection.execute(statement)

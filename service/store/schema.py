"""The tables of taught heads, of the gateway's documents, and of its keys.

`migrations` makes them; a change here needs a revision there, and its number in `SCHEMA`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA = "0002"  # the newest revision in `migrations`: numbers, so that an older schema is told from a newer one
VERSION_TABLE = "fovea_schema"  # where Alembic notes the revision; a database may be shared with other programs

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# One row. Every change writes it, so changes follow one another: whoever sees one knows that all before it are there.
clock = Table(
    "fovea_clock",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
)

heads = Table(
    "fovea_heads",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # the revision that made it: never used again
    Column("name", Text, nullable=False, unique=True),
    Column("backbone", Text, nullable=False),
    Column("backbone_version", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("features", Integer, nullable=False),  # D
    Column("pinned", Integer),
    Column("revision", BigInteger, nullable=False),  # that changed anything of it last
    Column("example_revision", BigInteger, nullable=False),  # that changed its examples last
    Column("last_example", BigInteger, nullable=False),  # the newest id; none is used twice
)

examples = Table(
    "fovea_examples",
    metadata,
    Column("head", BigInteger, ForeignKey(heads.c.id, ondelete="CASCADE"), primary_key=True),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("sha256", Text, nullable=False),  # of the encoded image, in hex
    Column("label", Text, nullable=False),
    Column("created", Text, nullable=False),  # ISO 8601, UTC
    Column("embedding", LargeBinary, nullable=False),  # float32 [D], little-endian
    UniqueConstraint("head", "sha256"),
    Index(None, "head", "label", "id"),
)

versions = Table(
    "fovea_versions",
    metadata,
    Column("head", BigInteger, ForeignKey(heads.c.id, ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("example_revision", BigInteger, nullable=False),  # of the examples that it was fitted on
    Column("spec", Text, nullable=False),  # `HeadSpec` as JSON
    Column("parameters", LargeBinary, nullable=False),  # `Parameters.to_bytes`
)

state = Table(
    "fovea_state",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),  # a JSON object
)

keys = Table(
    "fovea_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("scopes", Text, nullable=False),  # with spaces between
    Column("rate", Text),  # like 100/second
    Column("sha256", Text, nullable=False),  # of the secret, in hex
    Column("created", Text, nullable=False),  # ISO 8601, UTC
    Column("revoked", Text),  # ISO 8601, UTC
)

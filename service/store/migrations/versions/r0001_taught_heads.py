"""Heads, their examples and versions, and the gateway's small documents."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    clock = op.create_table(
        "fovea_clock",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_fovea_clock"),
    )
    op.bulk_insert(clock, [{"id": 1, "revision": 0}])
    op.create_table(
        "fovea_heads",
        sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("backbone", sa.Text, nullable=False),
        sa.Column("backbone_version", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("features", sa.Integer, nullable=False),
        sa.Column("pinned", sa.Integer),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("example_revision", sa.BigInteger, nullable=False),
        sa.Column("last_example", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_fovea_heads"),
        sa.UniqueConstraint("name", name="uq_fovea_heads_name"),
    )
    op.create_table(
        "fovea_examples",
        sa.Column("head", sa.BigInteger, nullable=False),
        sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("created", sa.Text, nullable=False),
        sa.Column("embedding", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("head", "id", name="pk_fovea_examples"),
        sa.ForeignKeyConstraint(["head"], ["fovea_heads.id"], name="fk_fovea_examples_head", ondelete="CASCADE"),
        sa.UniqueConstraint("head", "sha256", name="uq_fovea_examples_head_sha256"),
    )
    op.create_index("ix_fovea_examples_head_label_id", "fovea_examples", ["head", "label", "id"])
    op.create_table(
        "fovea_versions",
        sa.Column("head", sa.BigInteger, nullable=False),
        sa.Column("number", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("example_revision", sa.BigInteger, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("parameters", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("head", "number", name="pk_fovea_versions"),
        sa.ForeignKeyConstraint(["head"], ["fovea_heads.id"], name="fk_fovea_versions_head", ondelete="CASCADE"),
    )
    op.create_table(
        "fovea_state",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_fovea_state"),
    )

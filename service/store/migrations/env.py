"""Alembic runs this file for every command.

All revisions that are missing are applied in one transaction, on both databases. SQLite's foreign keys are not enforced
meanwhile: changing a table there means making another and dropping the first, which would delete what refers to it.
"""

from __future__ import annotations

from alembic import context

from service.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()

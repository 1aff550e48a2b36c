"""Brings a database to the newest schema. Imports Alembic, which takes longer than opening a database does."""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def configuration() -> Config:
    """Alembic's settings for the revisions in this folder."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def upgrade(connection: Connection) -> None:
    """Apply the revisions that are missing, in the connection's transaction, which the caller ends."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # the store says in one line what it did
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

"""Alembic's entry: runs the migrations on the connection that preftune.data.database hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from preftune.data.database import VERSION_TABLE
from preftune.data.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()

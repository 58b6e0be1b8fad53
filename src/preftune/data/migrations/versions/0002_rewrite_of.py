"""Which candidate a rewrite is of.

Revision: 0002, after 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("judgements", sa.Column("rewrite_of", sa.String(16)))


def downgrade() -> None:
    with op.batch_alter_table("judgements") as table:
        table.drop_column("rewrite_of")

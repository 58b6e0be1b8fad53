"""The first tables: prompts, candidates, judgements, demonstrations, imports.

Revision: 0001, after nothing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _about_a_prompt(table: str, *columns: sa.Column) -> None:
    op.create_table(
        table,
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("prompt_id", sa.String(16), nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("number", name=f"pk_{table}"),
        sa.UniqueConstraint("id", name=f"uq_{table}_id"),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompts.id"], name=f"fk_{table}_prompt_id"),
    )
    op.create_index(f"ix_{table}_prompt_id", table, ["prompt_id"])


def upgrade() -> None:
    op.create_table(
        "prompts",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("messages", sa.JSON, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("check_code", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_prompts"),
        sa.UniqueConstraint("id", name="uq_prompts_id"),
    )
    _about_a_prompt(
        "candidates",
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("sampling", sa.JSON, nullable=False),
    )
    _about_a_prompt(
        "judgements",
        sa.Column("ranking", sa.JSON, nullable=False),
        sa.Column("strength", sa.Integer),
        sa.Column("acceptable", sa.JSON(none_as_null=True)),
        sa.Column("rewrite", sa.Text),
        sa.Column("rationale", sa.Text),
        sa.Column("aspects", sa.JSON, nullable=False),
        sa.Column("rater", sa.Text, nullable=False),
        sa.Column("active_seconds", sa.Float),
        sa.Column("presentation", sa.JSON, nullable=False),
        sa.Column("picked_by", sa.Text, nullable=False),
        sa.Column("picked_probability", sa.Float),
        sa.Column(
            "supersedes",
            sa.String(16),
            sa.ForeignKey("judgements.id", name="fk_judgements_supersedes", deferrable=True, initially="DEFERRED"),
        ),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_judgements_supersedes", "judgements", ["supersedes"])
    _about_a_prompt(
        "demonstrations",
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
    )
    op.create_table(
        "imports",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("format", sa.Text, nullable=False),
        sa.Column("rows_read", sa.Integer, nullable=False),
        sa.Column("rows_new", sa.Integer, nullable=False),
        sa.Column("rows_set_aside", sa.Integer, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_imports"),
    )


def downgrade() -> None:
    for table in ("imports", "demonstrations", "judgements", "candidates", "prompts"):
        op.drop_table(table)

"""The ranking app: people and sessions, what is asked of whom, who did what.

Revision: 0003, after 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def _refers(table: str, column: str, to: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [to], name=f"fk_{table}_{column}")


def upgrade() -> None:
    _people()
    _work()
    _house()


def _people() -> None:
    op.create_table(
        "people",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("name_key", sa.Text, nullable=False),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("pseudonym", sa.String(16), nullable=False),
        sa.Column("password_hash", sa.Text, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("deleted", TIME),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_people"),
        sa.UniqueConstraint("name_key", name="uq_people_name_key"),
        sa.UniqueConstraint("pseudonym", name="uq_people_pseudonym"),
    )
    op.create_table(
        "sessions",
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("person_id", sa.String(16), nullable=False),
        sa.Column("csrf", sa.String(64), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("last_seen", TIME, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name="pk_sessions"),
        _refers("sessions", "person_id", "people.id"),
    )
    op.create_index("ix_sessions_person_id", "sessions", ["person_id"])
    op.create_table(
        "invitations",
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("created_by", sa.String(16)),
        sa.Column("person_id", sa.String(16)),
        sa.Column("expires", TIME, nullable=False),
        sa.Column("used_by", sa.String(16)),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("token_hash", name="pk_invitations"),
        _refers("invitations", "created_by", "people.id"),
        _refers("invitations", "person_id", "people.id"),
        _refers("invitations", "used_by", "people.id"),
    )
    op.create_table(
        "attempts",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_attempts"),
    )
    op.create_index("ix_attempts_key_at", "attempts", ["key", "at"])


def _work() -> None:
    op.create_table(
        "items",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("prompt_id", sa.String(16), nullable=False),
        sa.Column("candidate_ids", sa.JSON, nullable=False),
        sa.Column("task", sa.String(12), nullable=False),
        sa.Column("purpose", sa.String(8), nullable=False),
        sa.Column("expected", sa.JSON(none_as_null=True)),
        sa.Column("note", sa.Text),
        sa.Column("picked_by", sa.Text, nullable=False),
        sa.Column("picked_probability", sa.Float),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("overlap", sa.Integer),
        sa.Column("wanted", sa.Integer, nullable=False),
        sa.Column("taken", sa.Integer, nullable=False),
        sa.Column("queue", sa.String(8), nullable=False),
        sa.Column("shuffle", sa.Integer, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_items"),
        sa.UniqueConstraint("id", name="uq_items_id"),
        _refers("items", "prompt_id", "prompts.id"),
    )
    op.create_index("ix_items_prompt_id", "items", ["prompt_id"])
    op.create_index("ix_items_queue", "items", ["queue", "priority", "shuffle"])
    op.create_table(
        "assignments",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("item_id", sa.String(16), nullable=False),
        sa.Column("person_id", sa.String(16), nullable=False),
        sa.Column("purpose", sa.String(8), nullable=False),
        sa.Column("presentation", sa.JSON, nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("holds", sa.Boolean, nullable=False),
        sa.Column("skip_reason", sa.Text),
        sa.Column("lease_until", TIME, nullable=False),
        sa.Column("lease_seconds", sa.Integer, nullable=False),
        sa.Column("draft", sa.JSON(none_as_null=True)),
        sa.Column("draft_version", sa.Integer, nullable=False),
        sa.Column("judgement_id", sa.String(16)),
        sa.Column("head_id", sa.String(16)),
        sa.Column("active_seconds", sa.Float),
        sa.Column("created", TIME, nullable=False),
        sa.Column("updated", TIME, nullable=False),
        sa.Column("submitted", TIME),
        sa.PrimaryKeyConstraint("id", name="pk_assignments"),
        sa.UniqueConstraint("item_id", "person_id", "purpose", name="uq_assignments_item_id"),
        _refers("assignments", "item_id", "items.id"),
        _refers("assignments", "person_id", "people.id"),
        _refers("assignments", "judgement_id", "judgements.id"),
        _refers("assignments", "head_id", "judgements.id"),
    )
    op.create_index("ix_assignments_person", "assignments", ["person_id", "state", "submitted"])
    op.create_index("ix_assignments_lease", "assignments", ["state", "lease_until"])
    op.create_table(
        "submissions",
        sa.Column("assignment_id", sa.String(32), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("judgement_id", sa.String(16), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("assignment_id", "id", name="pk_submissions"),
        _refers("submissions", "assignment_id", "assignments.id"),
        _refers("submissions", "judgement_id", "judgements.id"),
    )


def _house() -> None:
    op.create_table(
        "protocols",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("guidelines", sa.Text, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_protocols"),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_secrets"),
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("object", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
    )


def downgrade() -> None:
    for table in ("audit", "secrets", "protocols", "submissions", "assignments", "items", "attempts", "invitations", "sessions", "people"):
        op.drop_table(table)

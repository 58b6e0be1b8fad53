"""Indices for what was looked up by reading a whole table: unnoticed in thousands of rows, minutes in millions.

Those of columns that refer to judgements are for the database itself, which looks there whenever a judgement is deleted.

Revision: 0005, after 0004.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INDICES = {
    "ix_prompts_kind": ("prompts", ["kind"]),
    "ix_judgements_rater": ("judgements", ["rater"]),
    "ix_judgements_picked_by": ("judgements", ["picked_by"]),
    "ix_judgements_created": ("judgements", ["created"]),
    "ix_demonstrations_author": ("demonstrations", ["author"]),
    "ix_items_picked_by": ("items", ["picked_by"]),
    "ix_items_listed": ("items", ["purpose", "priority", "shuffle", "number"]),
    "ix_assignments_judgement_id": ("assignments", ["judgement_id"]),
    "ix_assignments_head_id": ("assignments", ["head_id"]),
    "ix_submissions_judgement_id": ("submissions", ["judgement_id"]),
    "ix_feedback_judgement_id": ("feedback", ["judgement_id"]),
    "ix_audit_action": ("audit", ["action", "number"]),
}


def upgrade() -> None:
    for name, (table, columns) in INDICES.items():
        op.create_index(name, table, columns)


def downgrade() -> None:
    for name, (table, _) in INDICES.items():
        op.drop_index(name, table)

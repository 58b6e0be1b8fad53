"""What users of a served model say, and until when it is kept.

Revision: 0004, after 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "consents",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_consents"),
    )
    op.create_table(
        "feedback",
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("about", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("rater", sa.Text, nullable=False),
        sa.Column("prompt_id", sa.String(16), nullable=False),
        sa.Column("judgement_id", sa.String(16), nullable=False),
        sa.Column("demonstration_id", sa.String(16)),
        sa.Column("said", sa.String(16), nullable=False),
        sa.Column("candidate_ids", sa.JSON, nullable=False),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("split", sa.JSON),
        sa.Column("made", sa.JSON, nullable=False),
        sa.Column("consent_id", sa.String(16), nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("expires", TIME, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_feedback"),
        sa.ForeignKeyConstraint(["prompt_id"], ["prompts.id"], name="fk_feedback_prompt_id"),
        sa.ForeignKeyConstraint(
            ["judgement_id"], ["judgements.id"], name="fk_feedback_judgement_id", deferrable=True, initially="DEFERRED"
        ),
        sa.ForeignKeyConstraint(["consent_id"], ["consents.id"], name="fk_feedback_consent_id"),
    )
    for column in ("about", "prompt_id", "expires"):
        op.create_index(f"ix_feedback_{column}", "feedback", [column])


def downgrade() -> None:
    for table in ("feedback", "consents"):
        op.drop_table(table)

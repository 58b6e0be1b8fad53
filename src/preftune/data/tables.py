"""The store's tables as SQLAlchemy sees them; they are made and changed by the migrations alone (a test compares both).

`number` is the order of arrival and never changes; `id` is the hash of the content. The order of arrival is what keeps an old
prompt on its side of a split when new data comes. Below the records stand the ranking app's tables: people, what is asked of
whom, and who did what.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)


class Moment(TypeDecorator[datetime]):
    """A time with its zone. Databases are given UTC, as SQLite keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the time in UTC."""
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the time in UTC, with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

prompts = Table(
    "prompts",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(16), nullable=False, unique=True),
    Column("messages", JSON, nullable=False),
    Column("kind", Text, nullable=False, index=True),
    Column("check_code", Text, nullable=False),
)

candidates = Table(
    "candidates",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(16), nullable=False, unique=True),
    Column("prompt_id", String(16), ForeignKey("prompts.id"), nullable=False, index=True),
    Column("text", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("sampling", JSON, nullable=False),
)

judgements = Table(
    "judgements",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(16), nullable=False, unique=True),
    Column("prompt_id", String(16), ForeignKey("prompts.id"), nullable=False, index=True),
    Column("ranking", JSON, nullable=False),
    Column("strength", Integer),
    Column("acceptable", JSON(none_as_null=True)),
    Column("rewrite", Text),
    Column("rewrite_of", String(16)),
    Column("rationale", Text),
    Column("aspects", JSON, nullable=False),
    Column("rater", Text, nullable=False, index=True),
    Column("active_seconds", Float),
    Column("presentation", JSON, nullable=False),
    Column("picked_by", Text, nullable=False, index=True),
    Column("picked_probability", Float),
    Column("supersedes", String(16), ForeignKey("judgements.id", deferrable=True, initially="DEFERRED"), index=True),
    Column("created", DateTime(timezone=True), nullable=False, index=True),
)

demonstrations = Table(
    "demonstrations",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(16), nullable=False, unique=True),
    Column("prompt_id", String(16), ForeignKey("prompts.id"), nullable=False, index=True),
    Column("text", Text, nullable=False),
    Column("author", Text, nullable=False, index=True),
)

imports = Table(
    "imports",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("source", Text, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("format", Text, nullable=False),
    Column("rows_read", Integer, nullable=False),
    Column("rows_new", Integer, nullable=False),
    Column("rows_set_aside", Integer, nullable=False),
    Column("created", DateTime(timezone=True), nullable=False),
)


# The ranking app: people and how they come in. Tokens are kept as sha256 alone.

people = Table(
    "people",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", Text, nullable=False),
    Column("name_key", Text, nullable=False, unique=True),  # the name as it is compared: no capitals, one form of each letter
    Column("role", String(8), nullable=False),
    Column("pseudonym", String(16), nullable=False, unique=True),  # the rater of this person's judgements
    Column("password_hash", Text, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("deleted", Moment),  # a person who is gone stays as a row without name or password
    Column("created", Moment, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("person_id", String(16), ForeignKey("people.id"), nullable=False, index=True),
    Column("csrf", String(64), nullable=False),
    Column("created", Moment, nullable=False),
    Column("last_seen", Moment, nullable=False),
    Column("address", Text, nullable=False),  # the network alone, for the owner to tell one session from another
)

invitations = Table(
    "invitations",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("role", String(8), nullable=False),
    Column("created_by", String(16), ForeignKey("people.id")),  # empty: the program, for the first owner
    Column("person_id", String(16), ForeignKey("people.id")),  # who may set a new password by it; empty: whoever comes
    Column("expires", Moment, nullable=False),
    Column("used_by", String(16), ForeignKey("people.id")),
    Column("created", Moment, nullable=False),
)

attempts = Table(
    "attempts",  # to log in: failed ones and those under way
    metadata,
    Column("number", Integer, primary_key=True),
    Column("key", String(64), nullable=False),
    Column("at", Moment, nullable=False),
    Index("ix_attempts_key_at", "key", "at"),
)

# What is asked of whom.

items = Table(
    "items",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(16), nullable=False, unique=True),
    Column("prompt_id", String(16), ForeignKey("prompts.id"), nullable=False, index=True),
    Column("candidate_ids", JSON, nullable=False),
    Column("task", String(12), nullable=False),
    Column("purpose", String(8), nullable=False),
    Column("expected", JSON(none_as_null=True)),  # of a gold item: the ranking of candidate ids that is right
    Column("note", Text),
    Column("picked_by", Text, nullable=False, index=True),
    Column("picked_probability", Float),
    Column("priority", Integer, nullable=False),
    Column("overlap", Integer),  # how many are to judge it; empty: as the settings say
    Column("wanted", Integer, nullable=False),  # the same with the settings filled in
    Column("taken", Integer, nullable=False),  # slots that are judged or held by a live lease
    Column("queue", String(8), nullable=False),  # fresh: no slot taken; started: some; closed: all; gold
    Column("shuffle", Integer, nullable=False),  # random, so that items of one priority come in no order that means something
    Column("created", Moment, nullable=False),
    Index("ix_items_queue", "queue", "priority", "shuffle"),
    Index("ix_items_listed", "purpose", "priority", "shuffle", "number"),
)

assignments = Table(
    "assignments",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("item_id", String(16), ForeignKey("items.id"), nullable=False),
    Column("person_id", String(16), ForeignKey("people.id"), nullable=False),
    Column("purpose", String(8), nullable=False),
    Column("presentation", JSON, nullable=False),
    Column("state", String(10), nullable=False),
    Column("holds", Boolean, nullable=False),  # whether it takes one of the item's slots
    Column("skip_reason", Text),
    Column("lease_until", Moment, nullable=False),
    Column("lease_seconds", Integer, nullable=False),
    Column("draft", JSON(none_as_null=True)),
    Column("draft_version", Integer, nullable=False),
    Column("judgement_id", String(16), ForeignKey("judgements.id"), index=True),  # the one that stands
    # The last row said here, a withdrawal too: the next one supersedes it.
    Column("head_id", String(16), ForeignKey("judgements.id"), index=True),
    Column("active_seconds", Float),
    Column("created", Moment, nullable=False),
    Column("updated", Moment, nullable=False),
    Column("submitted", Moment),  # when it was last submitted or skipped
    UniqueConstraint("item_id", "person_id", "purpose"),
    Index("ix_assignments_person", "person_id", "state", "submitted"),
    Index("ix_assignments_lease", "state", "lease_until"),
)

submissions = Table(
    "submissions",  # every submission that was taken, so that one that is sent again is known
    metadata,
    Column("assignment_id", String(32), ForeignKey("assignments.id"), nullable=False),
    Column("id", String(64), nullable=False),
    Column("judgement_id", String(16), ForeignKey("judgements.id"), nullable=False, index=True),
    Column("created", Moment, nullable=False),
    PrimaryKeyConstraint("assignment_id", "id"),
)

# A served model: what its users say. The words themselves are judgements and demonstrations.

consents = Table(
    "consents",  # what users were told before they said anything
    metadata,
    Column("id", String(16), primary_key=True),
    Column("text", Text, nullable=False),
    Column("created", Moment, nullable=False),
)

feedback = Table(
    "feedback",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("about", String(16), nullable=False, index=True),  # the same rater's words of one kind on the same answers
    Column("kind", String(8), nullable=False),  # thumb, edit, better
    Column("rater", Text, nullable=False),
    Column("prompt_id", String(16), ForeignKey("prompts.id"), nullable=False, index=True),
    Column("judgement_id", String(16), ForeignKey("judgements.id", deferrable=True, initially="DEFERRED"), nullable=False, index=True),
    Column("demonstration_id", String(16)),
    Column("said", String(16), nullable=False),  # the judgement's id without what it supersedes; empty: taken back
    Column("candidate_ids", JSON, nullable=False),
    Column("models", JSON, nullable=False),  # who wrote each of them
    Column("split", JSON(none_as_null=True)),  # the two models between which the user was drawn
    Column("made", JSON, nullable=False),  # ids of the prompt and the candidates that came to the store by feedback
    Column("consent_id", String(16), ForeignKey("consents.id"), nullable=False),
    Column("created", Moment, nullable=False),
    Column("expires", Moment, nullable=False, index=True),
)

# The house's own.

protocols = Table(
    "protocols",  # what raters were told and asked, from when on
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(16), nullable=False),
    Column("settings", JSON, nullable=False),
    Column("guidelines", Text, nullable=False),
    Column("created", Moment, nullable=False),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("at", Moment, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index("ix_audit_action", "action", "number"),
)

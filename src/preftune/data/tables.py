"""The store's tables as SQLAlchemy sees them; they are made and changed by the migrations alone (a test compares both).

`number` is the order of arrival and never changes; `id` is the hash of the content. The order of arrival is what keeps an old
prompt on its side of a split when new data comes.
"""

from __future__ import annotations

from sqlalchemy import JSON, Column, DateTime, Float, ForeignKey, Integer, MetaData, String, Table, Text

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
    Column("kind", Text, nullable=False),
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
    Column("rater", Text, nullable=False),
    Column("active_seconds", Float),
    Column("presentation", JSON, nullable=False),
    Column("picked_by", Text, nullable=False),
    Column("picked_probability", Float),
    Column("supersedes", String(16), ForeignKey("judgements.id", deferrable=True, initially="DEFERRED"), index=True),
    Column("created", DateTime(timezone=True), nullable=False),
)

demonstrations = Table(
    "demonstrations",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(16), nullable=False, unique=True),
    Column("prompt_id", String(16), ForeignKey("prompts.id"), nullable=False, index=True),
    Column("text", Text, nullable=False),
    Column("author", Text, nullable=False),
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

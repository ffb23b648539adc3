"""The lease, the state of each rollout, input offsets, decisions, and what is to be sent."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "router"


def upgrade() -> None:
    op.create_table(
        "lease",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("heartbeat", sa.DateTime(timezone=True), nullable=False),
        schema=SCHEMA,
    )
    op.create_table(
        "states",
        sa.Column("pipeline", sa.Text, primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
        schema=SCHEMA,
    )
    op.create_table(
        "offsets",
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        schema=SCHEMA,
    )
    op.create_table(
        "decisions",
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        schema=SCHEMA,
    )
    op.create_index("decisions_by_pipeline", "decisions", ["pipeline", "sequence"], schema=SCHEMA)
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        schema=SCHEMA,
    )


def downgrade() -> None:
    for table in ("outbox", "decisions", "offsets", "states", "lease"):
        op.drop_table(table, schema=SCHEMA)

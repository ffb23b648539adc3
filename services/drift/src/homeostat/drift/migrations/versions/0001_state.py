"""State, input offsets, joins and alerts of each pipeline."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "drift"


def upgrade() -> None:
    op.create_table(
        "watches",
        sa.Column("pipeline", sa.Text, primary_key=True),
        sa.Column("state", sa.LargeBinary, nullable=False),
        sa.Column("replayed_clock", sa.BigInteger),
        schema=SCHEMA,
    )
    op.create_table(
        "offsets",
        sa.Column("pipeline", sa.Text, primary_key=True),
        sa.Column("topic", sa.Text, primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        schema=SCHEMA,
    )
    op.create_table(
        "slices",
        sa.Column("pipeline", sa.Text, primary_key=True),
        sa.Column("width", sa.BigInteger, primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True),
        sa.Column("halvings", sa.SmallInteger, nullable=False),
        sa.Column("rows", sa.LargeBinary, nullable=False),
        schema=SCHEMA,
    )
    op.create_table(
        "alerts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("pipeline", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("is_published", sa.Boolean, nullable=False, server_default=sa.false()),
        schema=SCHEMA,
    )
    op.create_index("alerts_by_pipeline", "alerts", ["pipeline", "at"], schema=SCHEMA)


def downgrade() -> None:
    for table in ("alerts", "slices", "offsets", "watches"):
        op.drop_table(table, schema=SCHEMA)

"""The history of our own tables, read by Alembic: `data.owntables.upgrade` walks it."""

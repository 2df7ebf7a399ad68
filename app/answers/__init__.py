"""Answers that clients may come back to: kept in SQLite, each its owner's, for a time, within a size."""

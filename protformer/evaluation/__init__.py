"""Rows in, rows out: what runs wrote, read back, compared and drawn."""

"""Measuring: victims by recipe, defenses by plan, rows by the cell."""

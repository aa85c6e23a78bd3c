"""Figures, tables, and what others have published, beside ours."""

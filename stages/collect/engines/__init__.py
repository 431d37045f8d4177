"""Readers of what engines record, one module an engine."""

"""Untrusted files: strict readers, limits, and writing that completes or leaves the old file."""

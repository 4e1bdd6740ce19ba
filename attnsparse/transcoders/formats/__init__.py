"""Layouts of transcoder files that other tools write, each turned into one meaning."""

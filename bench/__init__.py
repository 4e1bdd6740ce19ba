"""Benchmark of attnsparse against what the machine allows; run it as `python -m bench`, see README.md."""

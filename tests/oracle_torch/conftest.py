"""These tests need torch and transformers."""

"""Asking a model: greedy answers in batches, completions, and models behind a URL."""

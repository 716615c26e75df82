"""Who decides: judges of answers, what they say, and which one a text names."""

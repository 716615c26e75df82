"""How good a judge is, and where its verdicts are read."""

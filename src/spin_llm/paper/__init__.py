"""The paper's experiments, each one command: declarative specs, run over the public API, beside the printed numbers."""

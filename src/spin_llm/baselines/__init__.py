"""Fine-tuning baselines: what the paper compares its edit with (full, LoRA, DoRA, ReFT).

`settings` says what a training is told, `mixture` which pairs it sees, `methods` what each method trains and saves,
`training` is the loop, and `run` does it all in one resumable folder. Importing this package imports nothing heavy.
"""

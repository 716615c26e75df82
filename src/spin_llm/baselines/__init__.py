"""Fine-tuning baselines: what the paper compares its edit with (full, LoRA, DoRA, ReFT).

`methods` is what each method trains and saves, and how; `train` does it all, from the pairs on, in one resumable
folder. Importing this package imports nothing heavy.
"""

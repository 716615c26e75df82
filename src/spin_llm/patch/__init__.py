"""A patch: which stored numbers change, from what to what; on a loaded model and on a checkpoint's bytes."""

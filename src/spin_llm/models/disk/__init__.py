"""A model as files: from a name to a checkpoint folder, what it holds, and what identifies it."""

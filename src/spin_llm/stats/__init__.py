"""Statistics, with numpy and scipy alone: paired differences, correction, agreement, classification."""

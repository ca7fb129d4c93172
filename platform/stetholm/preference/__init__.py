"""Preference pairs: candidates from the fine-tuned model, scored against the reference answer."""

"""Saved models: writing, loading, resuming, merging."""

"""Scoring a model on data sources."""

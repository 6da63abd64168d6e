"""Connectors: Q-Former, MLP and pool-adapter. They know no backbone.

Imports nothing, because checking a recipe loads the options without torch.
"""

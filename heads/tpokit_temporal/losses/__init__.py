"""What the temporal head learns from: see `tpokit_temporal.losses.terms`.

Importing this package does not import torch, so that names and weights of the terms can be looked
up without it.
"""

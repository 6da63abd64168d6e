"""What the mask head learns from: see `tpokit_mask.losses.terms`.

Importing this package does not import torch, so that names, weights and options of the terms can be
looked up without it.
"""

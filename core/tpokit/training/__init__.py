"""Running stages on transformers' Trainer."""

"""From annotations and media to batches."""

"""Published sets of sentences about moments, each in the layout in which it is published.

All give samples of the same form, which `tpokit_temporal.sources.source` describes.
"""

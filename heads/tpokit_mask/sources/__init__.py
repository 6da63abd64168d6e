"""Published sets of objects in videos, each in the layout in which it is published.

All give samples of one object, in the form that `tpokit_mask.annotations` describes;
`tpokit_mask.sources.tracks` makes them.
"""

"""The mask head: objects in images and through videos, from task tokens, by SAM 2.

What there is so far: `sam2_port`, the only door to the sam2 package, `adapter` from slots to prompt
tokens, `losses` and `metrics`. The head that joins them is not built yet, so no plugin is
registered and no recipe can name it.
"""

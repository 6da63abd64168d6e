"""Published weights of the family: VideoChat-TPO (`released`) and VideoChat2 (`stages`).

Imports nothing, so that listing formats does without torch.
"""

"""CG-DETR (arXiv 2311.08835): moments and highlights of a video for a query, written anew.

Source: wjun0830/CGDETR (MIT) and the variant with a task token in OpenGVLab/TPO. Here only the
network; losses and decoding of results stand beside this folder.
"""

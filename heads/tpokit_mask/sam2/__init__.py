"""SAM 2 by its parts; what is public of it stands in `tpokit_mask.sam2_port`.

No other package imports sam2. Importing this one loads nothing.
"""

"""FlexAttention's Python functions as patterns: the way in for those who have a `mask_mod` or a `score_mod`."""

"""The steps of the GPU bundle; they need torch, triton and numpy, and what `tools/gpu_bundle.py` puts beside them."""

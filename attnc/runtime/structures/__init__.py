"""Structures of projection matrices: one `nn.Module` each, whose state dict holds the free parameters alone."""

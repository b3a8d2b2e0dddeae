"""The parts of `examples/train_lm.py`: its text, its patterns, its model, the training and the report."""

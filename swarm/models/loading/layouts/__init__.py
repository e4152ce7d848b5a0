"""Checkpoints that their authors quantized, a file a layout; their packages are not needed."""

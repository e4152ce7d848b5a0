"""From checkpoints: where they are, what they are and cost, which are refused, and the tensors of a part of one."""

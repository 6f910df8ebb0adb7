"""The policy's networks: vision tower, backbone, heads, draft models, and their checkpoints."""

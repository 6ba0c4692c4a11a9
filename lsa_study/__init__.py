"""What limits local self-attention? An ablation harness, from YAML to tables."""

__version__ = "0.1.0"

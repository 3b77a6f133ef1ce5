"""Configurations of accelerate for ``--accelerate_config``: DDP, FSDP2 and DeepSpeed (docs/distributed.md)."""

"""Correction at inference: a preference beside a frozen UNet, and the callback by which a pipeline follows it."""

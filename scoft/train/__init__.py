"""The wing of train_scoft_lora.py."""

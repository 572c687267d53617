"""The wing of the trainers, `train_scoft_lora.py` and its like, one for each family of base models."""

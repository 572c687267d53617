"""The wing of prepare_ccub.py."""

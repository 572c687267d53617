"""The wing behind evaluate_scoft.py."""

"""Behind correct_scoft.py."""

"""The wing behind survey_scoft.py."""

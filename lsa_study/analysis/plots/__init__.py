"""Figures of a study's rows."""

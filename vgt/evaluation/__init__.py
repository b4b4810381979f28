"""Scores: reconstruction, scenes, and pictures for the official scorers of GenEval and DPG-Bench."""

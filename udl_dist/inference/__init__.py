"""Trained models for people who use them: opened from a run or an exported folder, without Ray, W&B
or a data set.
"""

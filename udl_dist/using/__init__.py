"""What people do with a trained model from the command line: draw, rebuild, walk, embed, score.

It takes a `Model`, writes files, says lines, and never asks how that was trained; only `workers`
knows Ray.
"""

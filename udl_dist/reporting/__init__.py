"""Pages and comparisons: what a run folder says, for people who were not there. Reads an account,
trains nothing.
"""

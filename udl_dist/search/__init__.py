"""Search: trials of one experiment with other settings, stopped early and logged, and final runs of
the winner.
"""

"""Search: trials of one experiment with other settings, stopped early and journalled, and a winner
trained anew.
"""

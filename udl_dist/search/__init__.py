"""Search: trials of an experiment with other settings, stopped early, and runs of the winner."""

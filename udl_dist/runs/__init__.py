"""A run is a folder, on this disk or in object storage: its files, heartbeats, terminal and
tracking.
"""

"""A job file to a Ray cluster that is there already: what travels, by which door, what becomes of it.

Only `client.py` knows Ray's job API; nothing here trains, and nothing of a cluster is started or ended.
"""

"""How it is learned: the loop, the state it keeps, the ranks it runs on. Knows no Ray, W&B, tar or
method's name.
"""

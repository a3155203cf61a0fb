"""A trained model in use: opened from a run or an exported folder, sampled, evaluated, exported.

Opening one needs no Ray, no W&B and no data set; only `ray_workers` imports Ray.
"""

"""HRNet: network, preprocessing, training, inference, checkpoints, learner.

Knows no Label Studio, no queue and no disk layout; progress goes through a callback
``progress(step, done, total)``. Importing this package does not import torch; its modules do.
"""

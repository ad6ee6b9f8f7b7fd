"""Networks, preprocessing, training, inference, checkpoints, and the learner over them.

Knows no Label Studio, no queue and no disk layout; progress goes through a callback
``progress(step, done, total)``. Importing this package does not import torch; its modules do.
"""

"""Embedded defaults: Redis, Label Studio, the backend and its workers, started on this machine.

What the demo, `nextslice up` on a laptop and the integration tests run on. Real parts, private
ports, folders of their own; everything that was started is stopped.
"""

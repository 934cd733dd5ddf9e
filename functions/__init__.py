"""What runs in a worker process: the SDK, the worker's main, the wire to the agent and the model runtimes.

This package never imports the agent: a worker may run on another interpreter, with msgpack and numpy alone.
"""

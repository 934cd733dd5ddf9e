"""Runs Greengrass V1 Lambda code as it is: its handler, its context, and the modules that the core gave to its SDK.

Written from the documented surface of AWS Greengrass V1 and of `greengrasssdk` 1.6.1. Only workers of functions with
such code load any of it.
"""

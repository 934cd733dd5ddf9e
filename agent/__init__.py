"""Marram's agent: routes MQTT messages to models and swaps the models without ever breaking the device."""

__version__ = "0.1.0"

"""MQTT: the connections to the brokers, and the embedded broker."""

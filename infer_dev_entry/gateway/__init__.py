"""The gateway in front of the servers: its file of API keys, and the configuration of nginx. Pure."""

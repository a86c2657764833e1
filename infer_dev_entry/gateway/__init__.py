"""The gateway in front of the servers: its file of API keys, nginx's configuration, the router's words. Pure."""

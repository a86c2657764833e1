"""The entrypoint of an infer-dev GPU container: PID 1 that keeps local LLM servers serving."""

__version__ = "0.1.0"

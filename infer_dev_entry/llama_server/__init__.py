"""The embedded CPU engine: a llama-server look-alike over the xllamacpp wheel, run as `python -m` by the fleet."""

"""Bundles: an SGLang environment as one file. Read, verify, build."""

"""Shared foundations: types, configuration, ranks, files. Imports nothing above it."""

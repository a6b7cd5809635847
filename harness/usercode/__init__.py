"""Reads and executes a user's file, alike in judge and workers."""

"""From files on disk to pairs and their settings. Executes no user code."""

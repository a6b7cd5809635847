"""The command line: parses options, evaluates, prints, writes files."""

"""The command line: parses options once, runs what was asked for, prints and writes files."""

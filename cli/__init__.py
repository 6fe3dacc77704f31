"""The command line: one module a command; each parses, calls the engine and prints."""

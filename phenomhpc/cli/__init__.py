"""The command line: one file per verb, which reads arguments and prints.  No logic, and nothing heavy imported at the top."""

"""The command line: `beni train | evaluate | generate | plugins`."""

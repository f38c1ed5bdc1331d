"""The command line: `beni train | evaluate | generate | plugins | check | new-plugin`."""
